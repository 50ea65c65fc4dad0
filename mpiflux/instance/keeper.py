"""The lives of ranks: what every rank does so that a lost one is noticed, and what it does when one is.

Every rank tells rank 0 that it lives, and rank 0 answers: both know then that both directions are open. Within a node
a death is noticed within a second: each rank knocks at the next one, and all do at rank 0, which the kernel refuses
once nobody holds its bell. What MPI itself reports counts too. Rank 0 decides (:mod:`mpiflux.instance.lives`); without
rank 0 a rank ends what it runs, and leaves.

At the end ranks wait for each other before MPI is finalised, which would hang if one of them had died.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from mpiflux.instance.rank import Rank
from mpiflux.model import messages as m
from mpiflux.model.tree import TreeNode
from mpiflux.overlay import address
from mpiflux.overlay.heartbeat import Heartbeat
from mpiflux.sched.scheduler import Scheduler

FIRST = 20.0
"""Seconds within which rank 0 expects the first sign of life of every other rank."""
FENCE = 2 / 3
"""The part of the time-out after which a rank that hears nothing of rank 0 ends what it runs, as do supervisors that
hear nothing of their rank. Both count from when the rank sent what rank 0 has answered last, and rank 0 from when that
came: so they end it a beat or more before rank 0 gives the rank up and runs it elsewhere, whichever way is cut."""
LISTEN = 1.0
"""Seconds between two looks whether the other ranks of the node are there."""


class Lives(Protocol):
    """What rank 0 decides on."""

    def missing(self, gone: set[int], silent: Collection[int]) -> None:
        """Ranks that are gone for certain, and such as have not been heard for too long."""

    def regrouped(self, rank: int, generation: int) -> None:
        """A rank has done what :class:`mpiflux.model.messages.Regroup` asked for."""

    def left(self, rank: int) -> None:
        """Nothing runs on a rank any more, as the run is over."""


class Keeper:
    """Implements :class:`mpiflux.instance.rank.Keeper` for a rank that is not alone.

    ``place(node)`` notes on which rank a new scheduler is, and makes it if that is this one. ``inherit(lost)`` opens
    the door of the node here if a lost rank has held it.
    """

    def __init__(self, rank: Rank, timeout: float, place: Callable[[TreeNode], Scheduler | None],
                 inherit: Callable[[Collection[int]], None]) -> None:
        self.over = False
        self.orphaned = False
        """Rank 0 is gone, or has taken this rank for gone."""
        self.clean = True
        """No rank was lost: MPI can be finalised."""
        self.lives: Lives | None = None
        """On rank 0."""
        self._rank, self._place, self._inherit = rank, place, inherit
        self._me = rank.transport.rank
        now = rank.clock()
        peers = (0,) if self._me else range(1, rank.transport.size)
        # rank 0 has more to do than others before it says anything
        self._heartbeat = Heartbeat(peers, timeout, now, patience=timeout * FENCE) if self._me else \
            Heartbeat(peers, timeout, now, FIRST)
        self._next_listen = now + LISTEN
        self._told: set[int] = set()
        """Ranks that rank 0 was told to be missing."""
        self._leaving = self._may_leave = False

    # -- noticing ------------------------------------------------------------------------------------------------

    def next_wake(self) -> float:
        return min(self._heartbeat.next, self._next_listen)

    def turn(self, now: float) -> None:
        if now >= self._next_listen:
            self._next_listen = now + LISTEN
            self._listen()
        if self._heartbeat.next <= now and self._heartbeat.beat(now):
            if self._me:
                self._tell(0, m.Alive(now))
            else:
                self._beat(0.0)
        gone = self._rank.transport.failed()
        if self._rank.bell is not None and self._rank.bell.gone:
            gone |= self._rank.bell.gone
        silent = self._heartbeat.silent(now)
        if gone or silent:
            self._missing(gone, silent)

    def _listen(self) -> None:
        """Knock at the next rank of the node, and rank 0 if it is there: whoever is gone does not hold its bell."""
        bell = self._rank.bell
        peers = bell.peers if bell is not None else ()
        if bell is not None and peers:
            following = next((rank for rank in peers if rank > self._me), peers[0])
            bell.knock(following)
            if peers[0] == 0 != following:
                bell.knock(0)

    def _missing(self, gone: set[int], silent: list[int]) -> None:
        if self._me == 0:
            if self.lives is not None:
                self.lives.missing(gone, silent)
        elif 0 in gone or silent:
            self._orphan(replaced=0 not in gone)
        elif news := gone - self._told:
            self._told |= news
            self._tell(0, m.Missing(tuple(news)))

    def _orphan(self, replaced: bool) -> None:
        """There is nobody to work for. ``replaced``: others may go on, without this rank."""
        # when all is over rank 0 may be the first to leave
        self.orphaned, self.clean, self.over = not self._leaving, False, True
        if self._rank.service is not None:
            self._rank.service.ours = not replaced

    # -- being told ----------------------------------------------------------------------------------------------

    def handle(self, src: int, message: m.Message, now: float) -> None:
        sender = address.rank_of_control(src) if address.is_control(src) else 0
        if isinstance(message, m.Alive) and self._me:
            self._heartbeat.heard(0, message.sent)
            self._beat(now - message.sent)
        elif isinstance(message, m.Alive):
            self._heartbeat.heard(sender, now)
            self._tell(sender, message)
        elif isinstance(message, m.Regroup):
            self._regroup(message)
        elif isinstance(message, m.Dismissed):
            self._orphan(replaced=True)
        elif isinstance(message, m.Leave):
            self.clean, self._may_leave = message.clean, True
        elif self.lives is not None:
            if isinstance(message, m.Missing):
                self.lives.missing(set(message.ranks), [])
            elif isinstance(message, m.Regrouped):
                self.lives.regrouped(sender, message.generation)
            elif isinstance(message, m.Left):
                self.lives.left(sender)

    def _beat(self, age: float) -> None:
        """Supervisors go by what rank 0 has heard of their rank: one that is cut off may still talk to them."""
        if self._rank.executors is not None:
            self._rank.executors.beat(address.control(self._me), age)

    def _regroup(self, message: m.Regroup) -> None:
        rank = self._rank
        for lost in message.lost:
            self.forget(lost)
        mine = [number for number in message.executors if address.rank_of_executor(number) == self._me]
        made = {node.id: scheduler for node in message.nodes if (scheduler := self._place(node)) is not None}
        self._inherit(message.lost)
        rank.replace(message.retired, made, mine)
        self._tell(0, m.Regrouped(message.generation))

    def forget(self, lost: int) -> None:
        """A rank is lost: nothing is sent to it any more, nor expected of it."""
        self.clean = False
        self._rank.transport.forget(lost)
        self._heartbeat.forget(lost)
        if self._rank.bell is not None:
            self._rank.bell.forget(lost)

    # -- leaving -------------------------------------------------------------------------------------------------

    def farewell(self) -> bool:
        if self.over:
            return True
        if not self._leaving:
            self._leaving = True
            self._tell(0, m.Left())
        return self._may_leave and self._rank.transport.idle()

    def _tell(self, rank: int, message: m.Message) -> None:
        self._rank.deliver(address.control(rank), address.control(self._me), message)
