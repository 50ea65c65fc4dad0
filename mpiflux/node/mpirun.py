"""The process that an Open MPI job (``mpi: pmix``) has on each of its nodes: ``main`` is called with a JSON task.

They are the ranks of a PMI-1 program as far as their supervisors know. The first runs mpirun, whose remote-start
program hands it the command lines of the daemons; it puts them into PMI's key-value space, and each of the others
starts the daemon of its node. So whatever runs of a job is below the supervisor of its node: bound, killed and
accounted for like any other task, and nothing needs ssh.

Started by ``python -I -S``: it depends on nothing of the job's environment, and loads as little as it can.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

from mpiflux.model import openmpi, pmixlooks
from mpiflux.node.wording import ending

_OF_PMI = ("PMI_FD", "PMI_RANK", "PMI_SIZE", "MPIFLUX_LAUNCH_RANK", "MPIFLUX_LAUNCH_SIZE",
           "MPIFLUX_LAUNCH_LOCAL_RANK", "MPIFLUX_LAUNCH_LOCAL_SIZE")
_TAIL = 16384
"""Characters of mpirun's last words in which its reasons are looked for."""
_FIRST, _LAST, _PATIENCE = 0.8, 1.0, 3.0
"""Seconds before a node says that a task exited with a code; before the first one does, where others may know better;
and before one says that its daemon failed, which mpirun will have noticed."""
_LOOK, _LOOK_AGAIN = 2.0, 20.0
"""Seconds until it is looked which tasks have come to MPI, while none has ended and none was seen there."""
_LOOK_SOON = 1.0
"""The same once a task has ended with 0."""
_OLD = 2.5
"""How many times as long for Open MPI 4, whose mpirun takes a second to end its own tasks for one elsewhere."""
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_CLONE_NEWUTS = 0x04000000


class Task:
    """What :mod:`mpiflux.node.openmpi` tells of the job."""

    def __init__(self, text: str) -> None:
        told = json.loads(text)
        self.directory: str = told["directory"]
        self.mpirun: str = told["mpirun"]
        self.tasks: list[int] = told["tasks"]
        """Of each node."""
        self.nodes: list[str] = told["nodes"]
        self.part: int = told["part"]


class Pmi:
    """A client of PMI-1, as far as it is needed here. Raises EOFError when the server is gone."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=int(os.environ["PMI_FD"]))
        self._socket.set_inheritable(False)
        self._file = self._socket.makefile("rb")
        self._ask("init pmi_version=1 pmi_subversion=1")
        self._space = self._ask("get_my_kvsname").partition("kvsname=")[2].split()[0]

    def put(self, key: str, value: str) -> None:
        if "rc=0" not in self._ask(f"put kvsname={self._space} key={key} value={value}").split():
            raise ValueError(f"cannot put {key}")

    def get(self, key: str) -> str:
        """Empty when there is no such key."""
        answer = self._ask(f"get kvsname={self._space} key={key}")
        return answer.partition(" value=")[2].strip() if "rc=0" in answer.split() else ""

    def barrier(self) -> None:
        self._ask("barrier_in")

    def abort(self, code: int, message: str) -> None:
        """The job has to end with this code, for this reason. Only the first time counts."""
        with contextlib.suppress(OSError):  # its supervisor knows already
            self._socket.sendall(f"cmd=abort exitcode={code} message={message}\n".encode())

    def _ask(self, what: str) -> str:
        self._socket.sendall(f"cmd={what}\n".encode())
        answer = self._file.readline()
        if not answer.endswith(b"\n"):
            raise EOFError
        return answer.decode()


# -- nodes that share a host -------------------------------------------------------------------------------------------


def _shared_host(task: Task, pmi: Pmi) -> bool:
    """Whether some of the nodes have one host name. All learn it in the same barrier; the first looks."""
    if len(task.nodes) == 1:
        return False
    pmi.put(f"host.{task.part}", os.uname().nodename)
    pmi.barrier()
    if task.part:
        return False
    hosts = {pmi.get(f"host.{part}") for part in range(len(task.nodes))}
    return len(hosts) < len(task.nodes)


def _set_apart(name: str) -> None:
    """Give what is started here a host name of its own, so that Open MPI does not take tasks of other such nodes for
    neighbours in shared memory; where that is not allowed, have it use TCP alone. ``name`` is empty where the host's
    own name is to stay."""
    import ctypes

    _set_default(openmpi.OVERSUBSCRIBED)
    libc = ctypes.CDLL(None)
    if libc.unshare(_CLONE_NEWUTS) != 0:
        _set_default(openmpi.TCP_ONLY)
    elif name:
        socket.sethostname(name)


def _set_default(variables: Mapping[str, str]) -> None:
    """Where the user has not."""
    for variable, value in variables.items():
        os.environ.setdefault(variable, value)


# -- what they wait for ------------------------------------------------------------------------------------------------


class _Child:
    """mpirun or a daemon, and what its tasks tell of their ends."""

    def __init__(self, task: Task, pmi: Pmi) -> None:
        self.task, self.pmi = task, pmi
        self.cause: openmpi.End | None = None
        """The first task here that did not end well by itself."""
        self.pace = 1.0
        """By how much this mpirun is slower than that of Open MPI 5."""
        self.timers: dict[Callable[[], object], float] = {}
        """When :meth:`wait` is to call what, by the monotonic clock."""
        self.ended_by = 0
        """The signal that ends the job, once it has come."""
        self.readers: dict[int, Callable[[int], object]] = {}
        self.poll = select.poll()
        self.looks = pmixlooks.Looks()
        self.tail = b""
        """The last of what was written to mpirun's stderr, by it and by tasks."""

    def read(self, fd: int, reader: Callable[[int], object]) -> None:
        """Have ``reader`` called when there is something in ``fd``."""
        self.readers[fd] = reader
        self.poll.register(fd, select.POLLIN)

    def start(self, argv: list[str], environ: Mapping[str, str], errors: int = -1) -> None:
        """``errors`` becomes its stderr, and is closed here. It has no stdin."""
        self.wakeup, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.read(self.wakeup, lambda fd: None)
        self.read(os.open(f"{self.task.directory}/ends", os.O_RDWR | os.O_CLOEXEC), self._task_ended)
        for number in _HANDLED:
            # they go to the child too, and what it makes of them is the job's end
            signal.signal(number, self._signalled)
        actions: list[tuple[object, ...]] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        if errors >= 0:
            actions.append((os.POSIX_SPAWN_DUP2, errors, 2))
        self.pid = os.posix_spawn(argv[0], argv, environ, setsigdef=(*_HANDLED, signal.SIGPIPE, signal.SIGXFSZ),
                                  file_actions=actions)
        if errors >= 0:
            os.close(errors)

    def _signalled(self, number: int, _frame: object) -> None:
        if number not in (signal.SIGUSR1, signal.SIGUSR2):
            self.ended_by = number

    def wait(self) -> int:
        """How the child ended, as ``subprocess`` has it."""
        while True:
            pause = max(min(self.timers.values()) - time.monotonic(), 0.0) * 1000 if self.timers else None
            for fd, _ in self.poll.poll(pause):
                if fd != self.wakeup:
                    self.readers[fd](fd)
                    continue
                os.read(fd, 4096)
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                if ended:
                    return os.waitstatus_to_exitcode(status)
            now = time.monotonic()
            for call in [call for call, due in self.timers.items() if due <= now]:
                del self.timers[call]
                call()

    def tell(self) -> None:
        """Say that the job fails by ``cause``."""
        assert self.cause is not None
        code, reason = openmpi.reason(self.cause, self.task.tasks, self.task.nodes, ending)
        self.pmi.abort(code, reason + pmixlooks.hint(self.tail.decode("utf-8", "replace")))

    def heard(self, lines: str) -> None:
        """What tasks here have said."""
        if not self.looks.port and (port := pmixlooks.server_port(lines)):
            self.looks.port = port
            self.timers[self._look] = time.monotonic() + _LOOK
        for end in openmpi.ends(lines):
            if not end.status:
                self.looks.ended.append(end.rank)
                if self.looks.port:
                    self.timers[self._look] = time.monotonic() + _LOOK_SOON
            if end.is_cause and self.cause is None:
                self.cause = end
                # whoever knows better is to come first: mpirun, as one that exits may have called MPI_Abort; and for
                # the first node the others, as a task may have been brought down by one of theirs
                sure = end.signal and (self.task.part or len(self.task.nodes) == 1)
                self.timers[self.tell] = time.monotonic() + (0.001 if sure else _FIRST * self.pace)

    def _look(self) -> None:
        """Look which tasks have come to MPI, and end a job in which some wait for one that will not."""
        now = time.monotonic()
        looks = self.looks
        if looks.look(_tables(), now) and self.cause is None:
            name = openmpi.task_name(looks.ended[0], self.task.tasks, self.task.nodes)
            self.pmi.abort(1, pmixlooks.deserted(name))
        elif looks.ended:
            self.timers[self._look] = now + _LOOK_SOON
        elif not looks.anybody:
            self.timers[self._look] = now + _LOOK_AGAIN

    def _task_ended(self, fd: int) -> None:
        self.heard(os.read(fd, 4096).decode("ascii", "replace"))


def _tables() -> list[str]:
    found = []
    for path in pmixlooks.TABLES:
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            found.append(file.read())
    return found


# -- other nodes -------------------------------------------------------------------------------------------------------


class _Daemon(_Child):
    def run(self) -> int:
        """The exit status to end with."""
        _shared_host(self.task, self.pmi)
        self.pmi.barrier()
        told = _read(self.pmi, "mpirun")
        assert isinstance(told, list)
        part = self.task.part
        command = openmpi.daemon(told[0], _read(self.pmi, f"mpirun.{part}") if part > 1 else None)
        if openmpi.is_old(command):
            self.pace = _OLD
        if told[1]:
            _set_apart(f"{os.uname().nodename[:40]}-{part}")
        os.chdir(self.task.directory)
        shell = _login_shell()
        self.start([shell, "-c", command], os.environ)
        code = openmpi.code(self.wait())
        if due := self.timers.get(self.tell):
            # mpirun may still be about to say that it was MPI_Abort
            time.sleep(max(due - time.monotonic(), 0.0))
            self.tell()
        if not code:
            return 0
        # mpirun is to have the time to say why
        time.sleep(_PATIENCE)
        self.pmi.abort(code, f"Open MPI's daemon on {self.task.nodes[part]} {ending(code)}; the job's stderr may say "
                             "why")
        return 1


def _read(pmi: Pmi, name: str) -> object:
    return openmpi.joined([pmi.get(key) for key in openmpi.keys(name, int(pmi.get(name)))])


def _login_shell() -> str:
    """What mpirun wrote the command for: it looks which family the user's login shell is of."""
    import pwd

    try:
        shell = pwd.getpwuid(os.getuid()).pw_shell
    except KeyError:
        shell = ""
    return shell if os.path.basename(shell) in ("csh", "tcsh") else "/bin/sh"


# -- the first node ----------------------------------------------------------------------------------------------------


def _said(mpirun: str) -> str:
    """What ``mpirun --version`` prints."""
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    pid = os.posix_spawn(mpirun, [mpirun, "--version"], os.environ,
                         file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, write, 1),
                                       (os.POSIX_SPAWN_DUP2, write, 2)])
    os.close(write)
    os.close(null)
    with open(read, encoding="utf-8", errors="replace") as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


class _Mpirun(_Child):
    def __init__(self, task: Task, pmi: Pmi) -> None:
        super().__init__(task, pmi)
        self.told = False
        """Whether the supervisor knows why the job fails."""
        self.failing = False
        """Whether a task here has not ended well, for whatever reason."""
        self.limit = openmpi.start_limit(os.environ)

    def run(self) -> int:
        """The exit status to end with."""
        task = self.task
        said = _said(task.mpirun)
        if wrong := openmpi.unsuitable(task.mpirun, said):
            self.pmi.abort(126, wrong)
            return 126
        self.shared = _shared_host(task, self.pmi)
        if self.shared:
            _set_apart("")
        self.hosts = openmpi.host_names(os.uname().nodename, task.nodes)
        agent, bell = f"{task.directory}/agent", f"{task.directory}/bell"
        if len(self.hosts) > 1:
            with open(agent, "w", encoding="ascii") as file:
                file.write(openmpi.AGENT)
            os.mkfifo(bell, 0o600)
            self.read(os.open(bell, os.O_RDWR | os.O_CLOEXEC), self._collect)
            if self.limit:
                self.timers[self._give_up] = time.monotonic() + self.limit
        errors, theirs = os.pipe()
        self.read(errors, self._relay)
        self.major = openmpi.version(said)
        if self.major < 5:
            self.pace = _OLD
        environ = {**os.environ, **openmpi.settings(self.major, agent, len(self.hosts))}
        os.symlink(f"/proc/{os.getpid()}/fd/0", f"{task.directory}/stdin")
        self.start(openmpi.command(task.mpirun, self.hosts, task.tasks), environ, theirs)
        code = self.wait()
        os.set_blocking(errors, False)
        with contextlib.suppress(BlockingIOError):
            while self._relay(errors):
                pass
        if code and self.ended_by:
            # as a task would have ended that does not handle it
            signal.signal(self.ended_by, signal.SIG_DFL)
            os.kill(os.getpid(), self.ended_by)
        if not code and sum(self.task.tasks) > 1 and self.looks.port:
            self.looks.look(_tables(), time.monotonic())
            if not self.looks.anybody:
                self.pmi.put(pmixlooks.ALONE, "1")
        return self._explain(code) if code else 0

    def tell(self) -> None:
        """mpirun still ends the others, or waits for one that will never come to MPI_Init."""
        if not self.told:
            self.told = True
            super().tell()

    def heard(self, lines: str) -> None:
        if openmpi.BEGUN in lines.split():
            self.timers.pop(self._give_up, None)
        self.failing = self.failing or any(end.status for end in openmpi.ends(lines))
        super().heard(lines)
        self._tell_of_abort()

    def _give_up(self) -> None:
        self.told = True
        self.pmi.abort(1, openmpi.unreached(self.task.nodes, self.limit, self.major))

    def _tell_of_abort(self) -> None:
        """As soon as there is more than words: what MPI_Abort does to the other tasks is not why the job fails. The
        words alone may be of anybody, as a task that shows an old log."""
        if not self.failing or self.told or b"MPI_ABORT" not in self.tail:
            return
        said = self.tail.decode("utf-8", "replace")
        if openmpi.aborted(said) is not None:
            self.told = True
            self.pmi.abort(*openmpi.ending(said, 1, self.task.tasks, self.task.nodes, ending))

    def _explain(self, code: int) -> int:
        said = self.tail.decode("utf-8", "replace")
        code, reason = openmpi.ending(said, code, self.task.tasks, self.task.nodes, ending)
        if self.cause is not None and not self.told:
            code, reason = openmpi.reason(self.cause, self.task.tasks, self.task.nodes, ending)
        if len(self.hosts) > 1 and not self.told and code > 0:
            # the task may have been brought down by one elsewhere, of which its own node tells
            time.sleep(_LAST * self.pace)
        self.pmi.abort(code, reason)
        return code if 0 < code < 256 else 1

    def _relay(self, errors: int) -> bool:
        """Pass on what was written to stderr; False at its end."""
        data = os.read(errors, 65536)
        if not data:
            with contextlib.suppress(KeyError):
                self.poll.unregister(errors)
        self.tail = (self.tail + data)[-_TAIL:]
        self._tell_of_abort()
        left = data
        while left:
            left = left[os.write(2, left):]
        return bool(data)

    def _collect(self, bell: int) -> None:
        """Once every daemon's command is there, tell the other nodes."""
        os.read(bell, 4096)
        files = [f"{self.task.directory}/host.{host}" for host in self.hosts[1:]]
        if not all(map(os.path.exists, files)):
            return
        self.poll.unregister(bell)
        commands = []
        for name in files:
            with open(name, encoding="utf-8", errors="surrogateescape") as file:
                commands.append(file.read())
        for key, value in openmpi.puts(commands, self.shared).items():
            self.pmi.put(key, value)
        self.pmi.barrier()


def main() -> NoReturn:
    """Ends with the job's exit status; a reason goes to the supervisor by PMI's ``abort``."""
    task = Task(sys.argv[1])
    pmi = Pmi()
    for name in _OF_PMI:
        os.environ.pop(name, None)
    os.environ.update(MPIFLUX_TASKS=task.directory, TMPDIR=task.directory)
    if len(task.nodes) > 1:
        _set_default(openmpi.PATIENT)
    if not os.geteuid():
        os.environ.update(openmpi.AS_ROOT)
    try:
        sys.exit((_Daemon if task.part else _Mpirun)(task, pmi).run())
    except EOFError:
        sys.exit(1)
    except OSError as error:
        pmi.abort(1, f"{error.filename or 'Open MPI'} on {task.nodes[task.part]}: {error.strerror}")
        sys.exit(1)
