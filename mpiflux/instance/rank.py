"""The loop of one rank: waits, passes messages, lets its schedulers decide, passes what they decided.

It waits in ``epoll`` on the links of its supervisors and on what the master wants to hear, and asks MPI in between,
ever less often while nothing comes: an idle rank costs next to nothing.
"""

from __future__ import annotations

import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, Protocol

from mpiflux.instance.bell import Bell
from mpiflux.instance.early import held
from mpiflux.instance.pulse import Pulse
from mpiflux.model import messages as m
from mpiflux.model.apart import is_apart
from mpiflux.overlay import address
from mpiflux.overlay.transport import Transport
from mpiflux.sched.scheduler import Scheduler

TALK = 0.02
"""Seconds after a client's request or an answer to it for which a rank looks at MPI often: who waits for an answer asks
again when it has come."""
TALK_WAIT = 0.0003
"""The pause between two looks meanwhile; ``epoll`` knows no shorter one than a millisecond."""
PATROL = 5.0
"""Seconds after which schedulers are asked whether a user's policy lets them idle."""
QUIET = 5.0
"""Seconds without news after which a rank asks a third as often, and less with each second: a look at MPI costs it 60
to 200 µs of CPU, the more the longer it has slept."""
LIVES = (m.Alive, m.Missing, m.Regroup, m.Regrouped, m.Dismissed, m.Left, m.Leave)
"""What concerns the lives of ranks."""
OWED_LOOKS = 8
"""After a pause of so many times :data:`SENDING` a rank no longer thinks that something it was rung for will come."""
_ALONE_WAIT = 0.5
_NEVER = float("inf")


class Pauses(NamedTuple):
    """Bounds in seconds of the pause between two looks at MPI, which doubles while nothing arrives."""

    shortest: float
    longest: float
    quiet: float
    """The longest after many times :data:`QUIET`."""


ASKING = Pauses(0.0002, 0.005, 0.05)
RUNG = Pauses(0.05, 0.1, 0.2)
"""Of a rank whom everybody rings who sends to it and who has taken what it was rung for."""
SENDING = 0.001
"""Longest pause in seconds while something is on its way to or from here: MPI moves it on when asked."""


class Master(Protocol):
    """What rank 0 has above the root scheduler."""

    def handle(self, src: int, message: m.Message, now: float) -> None: ...
    def turn(self, now: float) -> None: ...
    def collect(self) -> list[tuple[int, m.Message]]: ...
    def signalled(self, number: int, now: float) -> None: ...
    def descriptors(self) -> list[int]: ...
    def readable(self, fd: int) -> None: ...
    def next_wake(self) -> float: ...


class ExecutorService(Protocol):
    """The executors of this rank."""

    changed: bool
    """There are other descriptors than :meth:`filenos` last said."""

    def filenos(self) -> dict[int, int]: ...
    def post(self, number: int, src: int, message: m.Message) -> None: ...
    def flush(self) -> None: ...
    def pending(self) -> bool: ...
    def retry(self) -> None: ...
    def receive(self, number: int) -> bool: ...
    def renew(self, number: int, retired: Collection[int]) -> None: ...
    def beat(self, src: int, age: float) -> None: ...
    def close(self) -> None: ...


class Service(Protocol):
    """Something else that a rank does in its loop, such as serving clients."""

    ours: bool
    """No other rank may have taken it over, as happens to one that was taken for lost."""

    def handle(self, src: int, message: m.Message, now: float) -> None:
        """A message to the rank itself."""

    def turn(self, now: float) -> None:
        """Once a loop turn."""

    def next_wake(self) -> float:
        """When ``turn`` wants to be called even if nothing happens; infinity: never."""

    def close(self) -> None:
        """The rank leaves."""


class Keeper(Protocol):
    """Who looks after the lives of ranks."""

    def handle(self, src: int, message: m.Message, now: float) -> None: ...
    def turn(self, now: float) -> None: ...
    def next_wake(self) -> float: ...

    over: bool
    """The rank is to leave without further ado."""

    def farewell(self) -> bool:
        """Nothing runs on this rank any more; called until it is true, which is when it may leave."""


class Rank:
    """One rank of an instance. ``run`` returns once the master's Shutdown has come, or it has nobody to work for."""

    def __init__(self, transport: Transport, schedulers: Mapping[int, Scheduler], rank_of: Callable[[int], int],
                 clock: Callable[[], float], bell: Bell | None = None) -> None:
        self.transport, self.clock, self.bell = transport, clock, bell
        self.schedulers = dict(schedulers)
        self.rank_of = rank_of
        self.executors: ExecutorService | None = None
        self.master: Master | None = None
        self.service: Service | None = None
        self.pulse: Pulse | None = None
        """Of a rank with supervisors."""
        self.keeper: Keeper | None = None
        """Of a rank that is not alone."""
        self.done = False
        self._watched: dict[int, Callable[[int, int], None]] = {}
        self._local: deque[tuple[int, int, m.Message]] = deque()
        self._dirty: set[int] = set()
        self._later: dict[int, float] = {}
        """When schedulers want to settle though nothing comes, by number."""
        self._retired: set[int] = set()
        self._outgoing: dict[tuple[int, int], list[tuple[int, int, m.Message]]] = {}
        self._pauses = ASKING
        self._wait = self._pauses.shortest
        self._owed = 0
        """Rings less batches: what was rung for and has not come may be held back by a full queue on its way here.
        Below 0 where the batch was faster than its ring."""
        self._talk_until = 0.0
        self._busy_at = 0.0
        self._patrol_at = 0.0
        self._wake_at = 0.0
        """When the master or a service wants to work even if nothing happens, as of the beginning of the turn."""
        self._held = False
        """Supervisors have not taken all that was sent to them, as of then."""
        self._worked = True
        """Since these two were asked for."""
        self._epoll = select.epoll()
        self._links: dict[int, int] = {}
        self._signals_in, self._signals_out = socket.socketpair()
        self._signals_out.setblocking(False)
        self._signals_in.setblocking(False)
        self._epoll.register(self._signals_in.fileno(), select.EPOLLIN)
        if bell is not None:
            self._epoll.register(bell.fileno(), select.EPOLLIN)

    def catch_signals(self, numbers: tuple[int, ...]) -> None:
        """Hand these signals to the master, in the loop and not in the middle of anything; also what came before.
        HUP stays ignored where it is (nohup)."""
        signal.set_wakeup_fd(self._signals_out.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda _number, _frame: None)
        if came := held.take():
            self._signals_out.send(bytes(came))

    def attach(self, executors: ExecutorService | None, master: Master | None) -> None:
        self.executors, self.master = executors, master
        self._register_links()
        if master is not None:
            for fd in master.descriptors():
                self._epoll.register(fd, select.EPOLLIN)

    def watch(self, fd: int, events: int, callback: Callable[[int, int], None]) -> None:
        """Call ``callback(fd, events)`` in the loop when one of these epoll events comes; again: change them."""
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Before ``fd`` is closed."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _register_links(self) -> None:
        for fd in self._links:
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):
                pass  # closed with its supervisor
        self._links = self.executors.filenos() if self.executors else {}
        for fd in self._links:
            self._epoll.register(fd, select.EPOLLIN)

    # -- when ranks are lost -------------------------------------------------------------------------------------

    def replace(self, retired: Iterable[int], schedulers: Mapping[int, Scheduler], executors: Iterable[int]) -> None:
        """Other schedulers instead of the retired ones, of whom nothing is taken any more; these executors anew."""
        self._retired.update(retired)
        for number in self._retired.intersection(self.schedulers):
            del self.schedulers[number]
            self._later.pop(number, None)
        self._dirty.difference_update(self._retired)
        self.schedulers.update(schedulers)
        if self.executors is not None:
            for number in executors:
                self.executors.renew(number, self._retired)
            self._register_links()

    # -- messages ------------------------------------------------------------------------------------------------

    def deliver(self, dst: int, src: int, message: m.Message) -> None:
        """Pass a message on: to a scheduler or executor of this rank, or towards the rank that has it."""
        rank = self.rank_of(dst)
        if rank == self.transport.rank:
            self._local.append((dst, src, message))
        else:
            self._outgoing.setdefault((address.communicator(dst, src), rank), []).append((dst, src, message))
            if isinstance(message, (m.ClientRequest, m.ClientReply)):
                self._talk_until = self.clock() + TALK

    def _dispatch(self, now: float) -> None:
        local, schedulers, later = self._local, self.schedulers, self._later
        self._dirty.update([number for number, when in later.items() if now >= when])
        while True:
            while local:
                dst, src, message = local.popleft()
                if src in self._retired:
                    continue
                if dst in schedulers:
                    schedulers[dst].receive(src, message, now)
                    self._dirty.add(dst)
                elif address.is_control(dst):
                    if isinstance(message, m.Shutdown):
                        self.done = True
                    elif isinstance(message, LIVES):
                        if self.keeper is not None:
                            self.keeper.handle(src, message, now)
                    elif self.service is not None:
                        self.service.handle(src, message, now)
                elif dst == address.MASTER:
                    assert self.master is not None
                    self.master.handle(src, message, now)
                elif address.is_executor(dst) and self.executors is not None:
                    self.executors.post(dst, src, message)
            if self.master is not None:
                self.master.turn(now)
                for dst, message in self.master.collect():
                    self.deliver(dst, address.MASTER, message)
            for number in sorted(self._dirty):
                scheduler = schedulers[number]
                for dst, message in scheduler.settle(now):
                    self.deliver(dst, number, message)
                if scheduler.due < _NEVER:
                    later[number] = scheduler.due
                elif later:
                    later.pop(number, None)
            self._dirty.clear()
            if not local:
                return

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until Shutdown has come and everything has left."""
        keeper = self.keeper
        while not (self.done and self.transport.idle() and not self._local) and not (keeper and keeper.over):
            self.turn()
        if self.service is not None:
            self.service.close()
            self.service = None
        if keeper is not None and keeper.over and self.bell is not None:
            # whoever is the last of the node to leave takes the directory away
            self.bell.take_down()
            self.bell = None
        if self.executors is not None:
            self.executors.close()
            self.executors, self.pulse, self._links = None, None, {}
        while keeper is not None and not keeper.farewell():
            self.turn()
        if self.bell is not None:
            self.bell.take_down()
        self._epoll.close()
        signal.set_wakeup_fd(-1)
        self._signals_in.close()
        self._signals_out.close()

    def turn(self) -> None:
        timeout = self._timeout()
        if 0 < timeout < 0.001 and self.clock() < self._talk_until:
            time.sleep(timeout)
            timeout = 0.0
        events = self._epoll.poll(timeout)
        now = self.clock()
        busy = False
        for fd, what in events:
            if fd in self._links:
                assert self.executors is not None
                if not self.executors.receive(self._links[fd]):
                    self._supervisor_lost("has died" if not is_apart(self._links[fd]) else
                                          "has died with the job that it tried alone")
                continue
            busy = True
            if fd in self._watched:
                self._watched[fd](fd, what)
            elif self.bell is not None and fd == self.bell.fileno():
                self._owed += self.bell.heard()
                if self.bell.reliable:
                    self._pauses = RUNG
            elif fd == self._signals_in.fileno():
                for number in self._signals_in.recv(64):
                    if self.master is not None:
                        self.master.signalled(number, now)
                    else:
                        self._withhold(number)
            elif self.master is not None:
                self.master.readable(fd)
        # that a supervisor or another rank lives is no news
        busy = busy or bool(self._local or self._outgoing)
        for batch in self.transport.poll():
            self._owed -= 1
            for dst, src, message in m.decode(batch):
                busy = busy or not isinstance(message, m.Alive)
                self._local.append((dst, src, message))
        if self._held and self.executors is not None:
            self.executors.retry()
        self._choose_pause(busy, now)
        if now >= self._patrol_at:
            self._patrol_at = now + PATROL
            for number, scheduler in self.schedulers.items():
                for dst, message in scheduler.patrol(now):
                    self.deliver(dst, number, message)
        if busy or self._local or self._outgoing or now >= self._wake_at:
            self._worked = True
            if self.pulse is not None and now >= self.pulse.next and self.pulse.look(now):
                self._supervisor_lost(f"has not answered for {self.pulse.patience:g} s, and is ended with what it ran")
            if self.keeper is not None:
                self.keeper.turn(now)
            if self.service is not None:
                self.service.turn(now)
            self._dispatch(now)
            self._flush()

    def _choose_pause(self, busy: bool, now: float) -> None:
        """How long to wait before the next look at MPI."""
        if busy:
            self._busy_at = now
            self._wait = SENDING if self._owed > 0 else self._pauses.shortest
            return
        longest, silence = self._pauses.longest, now - self._busy_at
        if silence >= QUIET:
            longest = min(longest * 3 * silence / QUIET, self._pauses.quiet)
        if self._owed > 0 and self._wait >= SENDING * OWED_LOOKS:
            # not every ring has a batch of its own
            self._owed, self._wait = 0, max(self._wait, self._pauses.shortest)
        else:
            self._owed = max(self._owed, 0)
            self._wait *= 2
        self._wait = min(self._wait, longest if now >= self._talk_until else TALK_WAIT)

    def _withhold(self, number: int) -> None:
        """A signal has come to this rank, and maybe to all: rank 0 decides, and nothing is started here until then."""
        me = address.control(self.transport.rank)
        self._local.extend((scheduler, me, m.Pause(True)) for scheduler in self.schedulers)
        self.deliver(address.MASTER, me, m.Warned(number))

    def _supervisor_lost(self, how: str) -> None:
        self._register_links()
        me = self.transport.rank
        self.deliver(address.MASTER, address.control(me), m.Fault(
            f"a supervisor of rank {me} {how}; another takes its place, and what it ran runs again", me))

    def _flush(self) -> None:
        if self.executors is not None:
            self.executors.flush()
            if self.executors.changed:
                self._register_links()
        if self._outgoing:
            outgoing, self._outgoing = self._outgoing, {}
            for (scheduler, rank), items in outgoing.items():
                self.transport.send(scheduler, rank, m.encode(items))
            if self.bell is not None:
                for rank in {rank for _, rank in outgoing}:
                    self.bell.ring(rank)

    def _timeout(self) -> float:
        if self._local:
            return 0.0
        if self.transport.size > 1:
            longest = min(self._wait, SENDING) if self.transport.moving() else self._wait
        else:
            longest = _ALONE_WAIT
        if self._worked or self._held:
            self._worked, self._wake_at = False, self._next_wake()
            self._held = self.executors is not None and self.executors.pending()
        if self._held:
            longest = min(longest, 0.001)
        if self._wake_at < _NEVER:
            longest = min(longest, max(self._wake_at - self.clock(), 0.0))
        return longest

    def _next_wake(self) -> float:
        """When the master or the service wants to work even if nothing happens."""
        first = self.master.next_wake() if self.master is not None else _NEVER
        if self.keeper is not None:
            first = min(first, self.keeper.next_wake())
        if self.pulse is not None:
            first = min(first, self.pulse.next)
        if self._later:
            first = min(first, *self._later.values())
        return min(first, self.service.next_wake()) if self.service is not None else first
