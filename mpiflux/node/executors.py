"""A rank's supervisors: starting them, passing messages, and replacing one that died."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from mpiflux.model import messages as m
from mpiflux.model.apart import executor_of, is_apart, scheduler_of
from mpiflux.node.link import Link, LinkClosed
from mpiflux.node.zygote import Setup, Zygote

Deliver = Callable[[int, int, m.Message], None]
"""(destination endpoint, source endpoint, message)."""


MOST_STILLBORN = 5
"""Supervisors of one place in a row that may die before they can run a job. Those that die later may have died of
their jobs, which are counted themselves (:mod:`mpiflux.store.crashes`)."""


class SupervisorsFail(RuntimeError):
    """No supervisor can live on this node."""


class _Alone:
    """What the supervisor of a job that is tried alone still has."""

    def __init__(self) -> None:
        self.leases: set[int] = set()
        self.fed = 0

    def posted(self, message: m.Message) -> None:
        if isinstance(message, m.Grant):
            self.leases.add(message.lease)
        elif isinstance(message, m.Feed):
            self.fed += sum(map(len, message.chunks))

    def reported(self, message: m.Message) -> None:
        if isinstance(message, m.Report):
            self.leases.difference_update(message.idle)
            self.fed -= sum(n for _, _, n, _ in message.done) + sum(len(chunk) for _, chunk in message.returned)


class Executors:
    """The supervisors of this rank, each an endpoint that schedulers grant leases to and feed.

    Those that have one job each (:mod:`mpiflux.model.apart`) are there from the grant of its lease to its end.
    """

    def __init__(self, zygote: Zygote, setups: list[Setup], deliver: Deliver) -> None:
        self._zygote, self._deliver = zygote, deliver
        self._setups = {setup.number: setup for setup in setups}
        self._links: dict[int, Link] = {}
        self._pids: dict[int, int] = {}
        self._declared: dict[int, dict[int, bytes]] = {}
        """What each executor was told of groups that have not ended, for one that takes its place."""
        self._schedulers: dict[int, set[int]] = {}
        """Who has used an executor, to be told when it is lost."""
        self._outgoing: dict[int, list[tuple[int, int, m.Message]]] = {}
        self._fences: dict[tuple[int, int], int] = {}
        """(executor, scheduler) to losses that the scheduler has not answered: what it sent before it heard of the
        last one was meant for the supervisor that died."""
        self._alone: dict[int, _Alone] = {}
        self.changed = False
        """There are other descriptors than :meth:`filenos` last said."""
        self.heard: set[int] = set()
        """Supervisors that have said something, or are new; for others to empty."""
        self._unborn: set[int] = set()
        """Supervisors that have not said anything yet: they do so before they take a job."""
        self._stillborn: dict[int, int] = {}
        """How many in a row died like this, by executor."""
        self.lost = 0
        """Supervisors that died and were replaced."""
        for number in self._setups:
            self._start(number)

    def filenos(self) -> dict[int, int]:
        """Descriptors to wait on, and the executor each belongs to."""
        self.changed = False
        return {link.fileno(): number for number, link in self._links.items()}

    def pids(self) -> dict[int, int]:
        return dict(self._pids)

    def _start(self, number: int) -> None:
        try:
            sock, self._pids[number] = self._zygote.supervisor(self._pids.get(number, 0))
        except RuntimeError as error:
            raise SupervisorsFail(str(error)) from None
        link = self._links[number] = Link(sock)
        setup = self._setups[executor_of(number) if is_apart(number) else number]
        self.changed = True
        self.heard.add(number)
        self._unborn.add(number)
        link.send(msgspec.msgpack.encode(msgspec.structs.replace(setup, number=number)))
        for frame in self._declared.get(number, {}).values():
            link.send(frame)

    def post(self, number: int, src: int, message: m.Message) -> None:
        """Queue a message for an executor of this rank; sent by :meth:`flush`."""
        if isinstance(message, m.ExecutorLost):
            self._fences[number, src] -= 1
            return
        if isinstance(message, m.Declare):
            self._declared.setdefault(number, {})[message.group.number] = m.encode([(number, src, message)])
        elif isinstance(message, m.Forget):
            known = self._declared.get(number, {})
            for group in message.groups:
                known.pop(group, None)
        elif self._fences.get((number, src)):
            return
        if is_apart(number) and not self._seat(number, src, message):
            return
        self._schedulers.setdefault(number, set()).add(src)
        self._outgoing.setdefault(number, []).append((number, src, message))

    def _seat(self, number: int, src: int, message: m.Message) -> bool:
        """Make a supervisor for a job that is to be tried alone; whether there is one."""
        if number not in self._alone:
            if isinstance(message, m.Stop):
                self._deliver(src, number, m.Stopped())
            if not isinstance(message, m.Grant):
                return False
            self._alone[number] = _Alone()
            self._start(number)
        self._alone[number].posted(message)
        return True

    def _hang_up(self, number: int) -> None:
        del self._alone[number]
        self._unborn.discard(number)
        self._links.pop(number).close()
        for held in (self._pids, self._declared, self._schedulers, self._outgoing):
            held.pop(number, None)  # type: ignore[attr-defined]  # whatever they hold
        self.changed = True

    def flush(self) -> None:
        """Send what was posted."""
        for number in [one for one, alone in self._alone.items() if not alone.leases and not alone.fed]:
            self._hang_up(number)
        outgoing, self._outgoing = self._outgoing, {}
        for number, items in outgoing.items():
            try:
                self._links[number].send(m.encode(items))
            except LinkClosed:
                # the end of its stream is noticed, and acted upon, where it is read
                continue

    def pending(self) -> bool:
        """Whether something waits to be sent."""
        return any(link.backlog for link in self._links.values())

    def retry(self) -> None:
        """Send more of what the sockets did not take."""
        for link in self._links.values():
            if link.backlog:
                try:
                    link.flush()
                except LinkClosed:
                    continue

    def receive(self, number: int) -> bool:
        """Deliver what an executor sent. False when it had died: it was replaced, its descriptors changed."""
        try:
            for frame in self._links[number].receive():
                self._unborn.discard(number)
                self._stillborn.pop(executor_of(number), None)
                self.heard.add(number)
                for dst, src, message in m.decode(frame):
                    if number in self._alone:
                        self._alone[number].reported(message)
                    if not isinstance(message, m.Alive):
                        self._deliver(dst, src, message)
        except LinkClosed:
            self.replace(number)
            return False
        return True

    def replace(self, number: int) -> None:
        """End a supervisor, if it lives, and all that it runs; another takes its place, and its schedulers are told."""
        self.lost += 1
        self._count(number)
        if number in self._alone:
            self._lose_alone(number)
            return
        self._links.pop(number).close()
        self._outgoing.pop(number, None)
        self._start(number)
        for scheduler in self._schedulers.get(number, ()):
            self._fences[number, scheduler] = self._fences.get((number, scheduler), 0) + 1
            self._deliver(scheduler, number, m.ExecutorLost(number))

    def _count(self, number: int) -> None:
        if number not in self._unborn:
            return
        self._unborn.discard(number)
        place = executor_of(number)
        self._stillborn[place] = self._stillborn.get(place, 0) + 1
        if self._stillborn[place] > MOST_STILLBORN:
            raise SupervisorsFail(
                f"{self._setups[place].node_name}: {MOST_STILLBORN} supervisors in a row ended before they had done "
                "anything; what they wrote to stderr says why (too little memory, a killer of processes?)")

    def _lose_alone(self, number: int) -> None:
        pid, users = self._pids[number], tuple(self._schedulers.get(number, ()))
        self._hang_up(number)
        try:
            self._zygote.bury(pid)
        except RuntimeError as error:
            raise SupervisorsFail(str(error)) from None
        for scheduler in users:
            self._fences[number, scheduler] = self._fences.get((number, scheduler), 0) + 1
            self._deliver(scheduler, number, m.ExecutorLost(number))

    def beat(self, src: int, age: float) -> None:
        """Tell all supervisors that their rank lives, and was taken for alive ``age`` seconds ago; those that live too
        answer. Infinity: nothing is known of that now."""
        for number, link in self._links.items():
            try:
                link.send(m.encode([(number, src, m.Alive(age=age))]))
            except LinkClosed:
                continue

    def renew(self, number: int, retired: Collection[int]) -> None:
        """Another one instead of a supervisor that lives: its schedulers are no more, and what it runs is ended.

        The root scheduler may have used it too, and is told of its end as ever; those ``retired`` are not there to be
        told.
        """
        self._unborn.discard(number)
        self.replace(number)
        for alone in [one for one in self._alone if executor_of(one) == number and scheduler_of(one) in retired]:
            self.replace(alone)

    def close(self) -> None:
        """Hang up and wait: supervisors end what they run, and leave."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._zygote.close()
