"""Start N ranks of a program with no MPI launcher: ``mpiflux run --ranks N``, and on other hosts ``--hosts a,b``.

The ranks bootstrap over our own PMI-1 server (:mod:`mpiflux.node.pmi`), so the MPI library must be one that
speaks PMI-1: MPICH and what descends from it, Intel MPI. Each rank leads a process group of its own, so that
signals reach it once, from here, and so that it can be ended with what it started. A guard process ends the ranks
should this process be killed.
"""

from __future__ import annotations

import os
import select
import selectors
import signal
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import NamedTuple

from mpiflux.instance.caught import Signals
from mpiflux.instance.guard import Guard
from mpiflux.instance.hosts import Layout
from mpiflux.instance.launcher import READY
from mpiflux.model.environment import ALLOCATION_NAMES, clean_environment
from mpiflux.model.pmi import Abort, Action, PmiServer, process_mapping
from mpiflux.node.pmi import PmiService, kvs_name, remove_segments

GRACE = 5.0
"""Seconds between TERM and KILL."""

PATIENCE = 1.0
"""Seconds that ranks get to end by themselves, with a message of their own, after another failed at start."""

LINGER = 60.0
"""Seconds that ranks may outlive rank 0 once it has left by itself."""

STOP_PATIENCE = 15.0
"""Seconds that ranks get to end resumable when they are to be started again: their jobs have some of it."""

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Those that mean the end: what ranks do after one of them is no news."""

RANKS_A_CPU = 64
"""No one wants more, and a slip of the finger would bring the machine down."""

LOST = 255
"""Exit status of a rank on another host whose connection is lost (:mod:`mpiflux.node.near`)."""

WRONG_USE = 2
CANNOT_START = 3
NOT_FOUND = 127
NOT_EXECUTABLE = 126


class Outcome(NamedTuple):
    """How a start of all ranks came to its end."""

    status: int
    """The exit status for the launcher."""
    lost: tuple[int, ...] = ()
    """Ranks that died or failed by themselves, in that order."""
    up: bool = False
    """All had come up when the first of them did."""
    over: bool = True
    """Rank 0 ended it as it wanted, or somebody asked for the end by a signal."""


def survivors_go_on(rank: int, mpi_up: bool) -> bool:
    """Whether the other ranks go on when ``rank`` has died or failed.

    ``mpi_up`` tells that every rank has at least come to MPI_Init, which cannot succeed without all of them, and that
    none waits for all others since.
    Nothing goes on without rank 0.
    """
    return rank != 0 and mpi_up


def say_ready(environ: MutableMapping[str, str]) -> None:
    """By rank 0 of a program that :func:`launch` expects to say so: all ranks are up, and none waits for all others."""
    fd = environ.pop(READY, "")
    if fd.isdigit():
        os.write(int(fd), b"1")
        os.close(int(fd))


def launch(argv: Sequence[str], ranks: int, environ: Mapping[str, str],
           tell: Callable[[str], None], layout: Layout | None = None,
           says_ready: bool = False) -> int:
    """Run ``argv`` as ``ranks`` ranks to the end and return the exit status for this process.

    That is rank 0's (128+N when signal N ended it), or that of the rank which brought the program down. ``tell``
    takes lines for the person. Call it from the main thread of a process that has not initialised MPI. ``layout``
    says which rank runs on which host; without it all run here. ``says_ready``: rank 0 calls :func:`say_ready`, and
    whoever dies before that ends the others. Raises ValueError unless ``ranks`` is positive and ``argv`` is not empty.
    """
    if ranks < 1 or not argv:
        raise ValueError(f"cannot start {ranks} ranks of {list(argv)}: give a command and at least 1 rank")
    if layout is None and (problem := too_many(ranks)):
        tell(problem)
        return WRONG_USE
    return start_all(argv, environ, tell, layout or one_host(ranks), says_ready).status


def too_many(ranks: int) -> str:
    """Why so many are not started on this machine, in words; empty when they are."""
    cpus = len(os.sched_getaffinity(0))
    if ranks <= cpus * RANKS_A_CPU:
        return ""
    return f"--ranks {ranks} are too many: here are {cpus} CPUs, for each of which at most {RANKS_A_CPU} are started"


def one_host(ranks: int) -> Layout:
    """All of them here."""
    return Layout(("localhost",) * ranks, (), frozenset({"localhost"}))


def start_all(argv: Sequence[str], environ: Mapping[str, str], tell: Callable[[str], None], layout: Layout,
              says_ready: bool = False, stop_when_lost: bool = False) -> Outcome:
    """:func:`launch`, and what became of it. ``stop_when_lost``: once a rank is lost that the others could do without,
    they are sent TERM, so that all can be started again."""
    return _Launch(list(argv), environ, tell, layout, says_ready, stop_when_lost).run()


def exit_status(returncode: int) -> int:
    """A shell's exit status for a returncode as :mod:`subprocess` gives it."""
    return 128 - returncode if returncode < 0 else returncode


class _Launch:
    def __init__(self, argv: list[str], environ: Mapping[str, str], tell: Callable[[str], None],
                 layout: Layout, says_ready: bool = False, stop_when_lost: bool = False) -> None:
        self.ready = not says_ready
        self.stop_when_lost, self.stopped_for_loss = stop_when_lost, False
        self.lost: list[int] = []
        self.failures: list[tuple[float, str]] = []
        """What is to be said of ranks that have ended with a status, and when: unless rank 0 does so too."""
        self.up_at_loss = False
        self.ready_pipe: tuple[int, int] | None = None
        """Through which rank 0 says that all are up."""
        self.argv, self.size, self.tell, self.layout = argv, len(layout.hosts), tell, layout
        self.environ = clean_environment(environ, keep=ALLOCATION_NAMES)
        self.pids: dict[int, int] = {}  # living ranks
        self.returncodes: dict[int, int] = {}
        self.signalled: set[int] = set()
        self.verdict: int | None = None
        self.reason = ""
        self.condemned = False
        self.ending = False
        self.status_before_ending: int | None = None
        self.deadline: float | None = None
        self.on_deadline: Callable[[], None] = self._kill_all
        self.terminal: int | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        kvsname = self.kvsname = kvs_name()
        self.guard = Guard(kvsname, GRACE)
        try:
            self.service = PmiService(PmiServer(self.size, kvsname, process_mapping(self.layout.nodes())))
            with selectors.DefaultSelector() as self.selector, Signals() as self.signals:
                self.selector.register(self.signals.fd, selectors.EVENT_READ)
                try:
                    self._start_all()
                    while self.pids:
                        self._turn()
                finally:
                    self.ending = True
                    self._kill_all()
                    for rank in list(self.pids):
                        self._reap(rank, 0)
                    self._take_terminal()
                    self.service.close()
                    if self.ready_pipe is not None:
                        os.close(self.ready_pipe[0])
        finally:
            self.guard.dismiss()
            remove_segments(kvsname, len(set(self.layout.hosts)))
        status = self._status()
        return Outcome(status, tuple(self.lost), self.up_at_loss, self._is_over())

    def _start_all(self) -> None:
        if not self.ready:
            self.ready_pipe = os.pipe2(os.O_CLOEXEC)
            self.selector.register(self.ready_pipe[0], selectors.EVENT_READ)
        for rank in range(self.size):
            for number in self.signals.read():
                self._on_signal(number)
            if self.ending or self.signalled.intersection(STOPPING):
                self._end("interrupted before all ranks were started", 128 + min(self.signalled, default=0))
                return
            try:
                self._start(rank)
            except OSError as error:
                self._cannot_start(rank, error)
                return
        for fd in self.service.fds():
            self.selector.register(fd, selectors.EVENT_READ)

    def _start(self, rank: int) -> None:
        _, variables = self.service.open(rank)
        if rank == 0 and self.ready_pipe is not None:
            os.set_inheritable(self.ready_pipe[1], True)
            variables = {**variables, READY: str(self.ready_pipe[1])}
        argv = self.layout.command(rank, self.argv, self.kvsname)
        actions = [] if rank == 0 else [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        try:
            pid = os.posix_spawnp(argv[0], argv, {**self.environ, **variables, **self.layout.variables(rank)},
                                  file_actions=actions, setpgroup=0, setsigmask=[],
                                  setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTTOU])  # ignored here
        finally:
            self.service.started(rank)
            if rank == 0 and self.ready_pipe is not None:
                os.close(self.ready_pipe[1])
        self.pids[rank] = pid
        self.guard.watch(pid)
        if rank == 0:
            self._give_terminal()

    def _cannot_start(self, rank: int, error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            self._end(f"cannot start {self.argv[0]}: there is no such command; give a path or mend PATH", NOT_FOUND)
        elif isinstance(error, PermissionError):
            self._end(f"cannot start {self.argv[0]}: it may not be executed; chmod +x it", NOT_EXECUTABLE)
        else:
            self._end(f"cannot start rank {rank} of {self.size}: {error.strerror}; ask for fewer --ranks, or "
                      "raise the limits that ulimit -n and -u show", CANNOT_START)

    def _turn(self) -> None:
        due = min([when for when, _ in self.failures[:1]] + [self.deadline] * (self.deadline is not None), default=None)
        timeout = None if due is None else max(0.0, due - time.monotonic())
        for key, _ in self.selector.select(timeout):
            if key.fd == self.signals.fd:
                for number in self.signals.read():
                    self._on_signal(number)
            elif self.ready_pipe is not None and key.fd == self.ready_pipe[0]:
                self._hear_ready()
            elif self.service.serves(key.fd):  # an earlier event of this turn may have closed it
                self._serve(key.fd)
        self._check_stuck()
        while self.failures and time.monotonic() >= self.failures[0][0]:
            self.tell(self.failures.pop(0)[1])
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.deadline = None
            self.on_deadline()

    def _hear_ready(self) -> None:
        assert self.ready_pipe is not None
        fd, self.ready_pipe = self.ready_pipe[0], None
        self.ready = bool(os.read(fd, 1))
        self.selector.unregister(fd)
        os.close(fd)

    def _status(self) -> int:
        own = self.status_before_ending
        if own is None and 0 in self.returncodes:
            own = exit_status(self.returncodes[0])
            if self.verdict is not None and self.ending:
                return self.verdict
        if not own and self.verdict is not None:
            self._say_reason()
            return self.verdict
        return CANNOT_START if own is None else own

    def _is_over(self) -> bool:
        """Whether nothing is left to go on with: rank 0 came to the end of the run, or somebody asked for an end."""
        if self.signalled:
            return True
        own = self.returncodes.get(0)
        if own is None or own < 0 or 0 in self.lost:
            return own is None
        return not self.lost or own not in (128 + signal.SIGTERM, CANNOT_START)

    # -- PMI -----------------------------------------------------------------------------------------------------

    def _serve(self, fd: int) -> None:
        actions = self.service.on_readable(fd)
        if not self.service.serves(fd):
            self._forget(fd)
        self._act(actions)

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Abort):
                self._end(action.message, action.code & 0xFF or 1)

    def _forget(self, fd: int) -> None:
        try:
            self.selector.unregister(fd)
        except KeyError:
            pass  # not registered yet

    def _check_stuck(self) -> None:
        waiting, gone = self.service.server.stuck(), sorted(self.returncodes)
        if waiting and gone:
            culprit = next((exit_status(self.returncodes[r]) for r in gone if self.returncodes[r]), 1)
            self._condemn(f"rank {waiting[0]} waits in MPI_Init or MPI_Finalize for ranks that have gone "
                          f"({', '.join(map(str, gone))}); ending the others", None if 0 in gone else culprit)

    # -- deaths --------------------------------------------------------------------------------------------------

    def _reap(self, rank: int, options: int) -> None:
        pid, status = os.waitpid(self.pids[rank], options)
        if pid == 0:
            return
        if os.WIFSTOPPED(status):
            if rank == 0:
                self._stopped()
            return
        if self.ready_pipe is not None and _readable(self.ready_pipe[0]):
            self._hear_ready()
        mpi_up = self.ready and all(map(self.service.server.initialized, range(self.size)))
        del self.pids[rank]
        self.guard.unwatch(pid)
        self.returncodes[rank] = os.waitstatus_to_exitcode(status)
        self._last_words(rank)
        if not self.ending:
            self._ended(rank, self.returncodes[rank], mpi_up)

    def _note_lost(self, rank: int, mpi_up: bool) -> None:
        if not self.lost:
            self.up_at_loss = mpi_up
        self.lost.append(rank)

    def _last_words(self, rank: int) -> None:
        """Serve what the rank wrote before it died: it may be an abort."""
        mine = [fd for fd in self.service.fds() if self.service.rank_of(fd) == rank]
        for fd in mine:
            self._forget(fd)
            while self.service.serves(fd) and _readable(fd):
                self._act(self.service.on_readable(fd))
        self.service.close_rank(rank)

    def _ended(self, rank: int, returncode: int, mpi_up: bool) -> None:
        if rank == 0:
            self._rank_0_ended(returncode, mpi_up)
            return
        if self.stopped_for_loss or returncode == 0 or self.service.server.finalized(rank):
            return
        self._note_lost(rank, mpi_up)
        how = f"died of {_signal_name(-returncode)}" if returncode < 0 else f"exited with status {returncode}"
        told_to = bool(self.signalled.intersection(STOPPING))
        if survivors_go_on(rank, mpi_up):
            if self.stop_when_lost and not self.signalled and 0 in self.pids:
                self._stop_for_loss(f"rank {rank} {how}; ending the others to start all again")
            elif not told_to and returncode < 0:
                self.tell(f"rank {rank} {how}; the others go on")
            elif not told_to and 0 in self.pids:
                self.failures.append((time.monotonic() + PATIENCE, f"rank {rank} {how}; the others go on"))
            return
        reason = "" if told_to else f"rank {rank} {how} before all were up; ending the others"
        if returncode < 0:
            self._end(reason, exit_status(returncode))
        else:
            self._condemn(reason, returncode)

    def _rank_0_ended(self, returncode: int, mpi_up: bool) -> None:
        self._take_terminal()
        if not returncode:
            for _, text in self.failures:
                self.tell(text)
        # else all end with what is wrong with the instance, and rank 0 has said it
        self.failures.clear()
        self.status_before_ending = exit_status(returncode)
        cut_off = returncode == LOST and self.layout.hosts[0] not in self.layout.here
        if returncode < 0 or cut_off:
            self._note_lost(0, mpi_up)
            if cut_off or -returncode not in self.signalled:
                how = "is cut off" if cut_off else f"died of {_signal_name(-returncode)}"
                self.tell(f"rank 0 {how}; ending the others")
            self._end("", None)
        elif self.stopped_for_loss:
            self._after(GRACE, lambda: self._end("", None))
        elif not self.condemned:
            self._after(PATIENCE if returncode and not mpi_up else LINGER, self._rank_0_left)

    def _stop_for_loss(self, reason: str) -> None:
        """Rank 0 ends the run so that it can be resumed."""
        self.stopped_for_loss = True
        self.tell(reason)
        self._signal_all(signal.SIGTERM)
        self._after(STOP_PATIENCE, lambda: self._end("", None))

    def _rank_0_left(self) -> None:
        self._end(f"rank 0 has ended; ending rank {', '.join(map(str, self.pids))}", None)

    # -- ending ------------------------------------------------------------------------------------------------

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        self.deadline, self.on_deadline = time.monotonic() + seconds, what

    def _condemn(self, reason: str, verdict: int | None) -> None:
        """The program cannot go on; its ranks may find that out by themselves and say it better."""
        if self.ending or self.condemned:
            return
        self.condemned, self.reason, self.verdict = True, reason, verdict
        self._after(PATIENCE, lambda: self._end(reason, verdict))

    def _say_reason(self) -> None:
        if self.reason:
            self.tell(self.reason)
        self.reason = ""

    def _end(self, reason: str, verdict: int | None) -> None:
        """TERM to all that live, KILL after GRACE seconds."""
        if self.ending:
            return
        self.ending = True
        self.reason, self.verdict = reason, verdict
        self._say_reason()
        self._signal_all(signal.SIGTERM)
        self._signal_all(signal.SIGCONT)
        self._after(GRACE, self._kill_all)

    def _kill_all(self) -> None:
        self._signal_all(signal.SIGKILL)
        for pid in self.pids.values():
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # the rank joined another group

    def _signal_all(self, number: int) -> None:
        for pid in self.pids.values():
            os.kill(pid, number)

    # -- signals and the terminal --------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            for rank in list(self.pids):
                self._reap(rank, os.WNOHANG | os.WUNTRACED)
        elif number == signal.SIGCONT:
            self._give_terminal()
            self._signal_all(signal.SIGCONT)
        else:
            self.signalled.add(number)
            self._signal_all(number)

    def _give_terminal(self) -> None:
        """Make rank 0 what the terminal talks to, if that is us now: it may read, and Ctrl-C reaches it once."""
        try:
            if 0 in self.pids and os.tcgetpgrp(0) == os.getpgrp():
                os.tcsetpgrp(0, self.pids[0])
                os.kill(self.pids[0], signal.SIGCONT)  # it may have read too early, and was stopped for that
                self.terminal = 0
        except OSError:
            pass  # stdin is no terminal, or not ours

    def _take_terminal(self) -> None:
        if self.terminal is None:
            return
        try:
            os.tcsetpgrp(self.terminal, os.getpgrp())  # SIGTTOU is ignored meanwhile: see Signals
        except OSError:
            pass  # it has hung up
        self.terminal = None

    def _stopped(self) -> None:
        """Rank 0 was stopped, by Ctrl-Z: stop all, ourselves too, so that the shell gets its prompt back."""
        if self.terminal is None:
            return
        self._take_terminal()
        self._signal_all(signal.SIGTSTP)
        os.killpg(0, signal.SIGTSTP)


def _readable(fd: int) -> bool:
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
