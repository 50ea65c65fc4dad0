"""A rank's supervisors: starting them, passing messages, and replacing one that died."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from mpiflux.model import messages as m
from mpiflux.node.link import Link, LinkClosed
from mpiflux.node.zygote import Setup, Zygote

Deliver = Callable[[int, int, m.Message], None]
"""(destination endpoint, source endpoint, message)."""


MOST_STILLBORN = 5


class SupervisorsFail(RuntimeError):
    """No supervisor can live on this node."""


class Executors:
    """The supervisors of this rank, each an endpoint that schedulers grant leases to and feed."""

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
        self._stillborn: dict[int, int] = {}
        """Supervisors in a row that died before they said anything, by executor."""
        self.lost = 0
        """Supervisors that died and were replaced."""
        for number in self._setups:
            self._start(number)

    def filenos(self) -> dict[int, int]:
        """Descriptors to wait on, and the executor each belongs to."""
        return {link.fileno(): number for number, link in self._links.items()}

    def pids(self) -> dict[int, int]:
        return dict(self._pids)

    def _start(self, number: int) -> None:
        try:
            sock, self._pids[number] = self._zygote.supervisor(self._pids.get(number, 0))
        except RuntimeError as error:
            raise SupervisorsFail(str(error)) from None
        link = self._links[number] = Link(sock)
        link.send(msgspec.msgpack.encode(self._setups[number]))
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
        self._schedulers.setdefault(number, set()).add(src)
        self._outgoing.setdefault(number, []).append((number, src, message))

    def flush(self) -> None:
        """Send what was posted."""
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
                self._stillborn.pop(number, None)
                for dst, src, message in m.decode(frame):
                    self._deliver(dst, src, message)
        except LinkClosed:
            self._replace(number)
            return False
        return True

    def _replace(self, number: int) -> None:
        self.lost += 1
        self._links.pop(number).close()
        self._outgoing.pop(number, None)
        self._stillborn[number] = self._stillborn.get(number, 0) + 1
        if self._stillborn[number] > MOST_STILLBORN:
            raise SupervisorsFail(
                f"{self._setups[number].node_name}: {MOST_STILLBORN} supervisors in a row ended before they had done "
                "anything; what they wrote to stderr says why (too little memory, a killer of processes?)")
        self._start(number)
        for scheduler in self._schedulers.get(number, ()):
            self._fences[number, scheduler] = self._fences.get((number, scheduler), 0) + 1
            self._deliver(scheduler, number, m.ExecutorLost(number))

    def beat(self, src: int) -> None:
        """Tell all supervisors that their rank lives."""
        for number, link in self._links.items():
            try:
                if not link.backlog:
                    link.send(m.encode([(number, src, m.Alive())]))
            except LinkClosed:
                continue

    def renew(self, number: int) -> None:
        """Another one instead of a supervisor that lives: its schedulers are no more, and what it runs is ended.

        The root scheduler may have used it too, and is told of its end as ever.
        """
        self._replace(number)
        self._stillborn.pop(number, None)

    def close(self) -> None:
        """Hang up and wait: supervisors end what they run, and leave."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._zygote.close()
