"""The small process from which supervisors are forked, because a rank must not fork once MPI is up.

It is forked itself before MPI is initialised, closes every descriptor of the launcher, and then only waits: for
the rank to ask for a supervisor, and for a supervisor to die. As the subreaper above the supervisors it inherits
what a killed supervisor leaves behind, and ends it. When the rank is gone it ends everything and leaves.

A job may kill it: whose supervisor is dead has it for a parent. Then the rank starts another, which is no fork of it
but a program of its own, and costs nothing before. Supervisors that live go on, below whoever inherits them, and what
dead ones left is known by its environment (:func:`mpiflux.node.proctree.abandoned`).
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from typing import NoReturn

import msgspec

from mpiflux.node import proctree, spawn
from mpiflux.node.scratch import remove_abandoned, remove_directory, remove_left

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
_END_WAIT = 30.0
_TIDY = b"tidy "
_BURY = b"bury "
_LAST_LOOKS = 100
"""How often, every 10 ms, it is looked whether the node's ranks are all gone, with their bells."""
_STUBBORN = 5.0
"""Seconds after which a killed supervisor is waited for no longer: it is in an uninterruptible sleep."""
ANSWER_LIMIT = 20.0
"""Seconds for which a rank waits for an answer of its zygote: some more than it may take to bury a supervisor."""
BELL = "bell-"
"""How the names of ranks' bells in a door's directory begin."""

_GONE = "the process that forks supervisors is gone; was it killed?"
_SILENT = (f"the process that forks supervisors has not answered for {ANSWER_LIMIT:.0f} s; is it stopped, or the node "
           "short of memory?")
_TRIES = 3
"""Zygotes that are asked, one after the other, before it is given up."""
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_MAIN = ("import sys, json; told = json.loads(sys.argv[1]); sys.path[:] = told['path']; "
         "from mpiflux.node.zygote import main; main(told)")


class Setup(msgspec.Struct, frozen=True):
    """What a supervisor must know before its first job; the first frame on its link."""

    number: int
    """Its endpoint."""
    node_name: str
    environ: dict[bytes, bytes]
    """Base environment of jobs: the launcher's own variables are not in it. Bytes, as not all of it may be text."""
    cpus_of_core: tuple[tuple[int, ...], ...]
    gpus: tuple[tuple[int, str, str], ...] = ()
    """(number, vendor, id) of each GPU of the node."""
    clock_offset: float = 0.0
    """Unix time minus the monotonic clock, in seconds, read once: so that a clock set back harms nothing."""
    instance: str = ""
    """Tells instances apart, also on one machine."""
    patience: float = 0.0
    """Seconds without a sign of life of the rank after which its jobs are ended; 0: however long."""


class Zygote:
    """The rank's side of its zygote."""

    def __init__(self, control: socket.socket, pid: int) -> None:
        self.control, self.pid = control, pid
        self.mark = b""
        """An entry of the environment that all jobs of the instance on this node have, and nobody else. Without it
        nothing is found of what jobs leave behind once this process is gone too."""
        self.on_replaced: Callable[[str], object] = lambda how: None
        """Told what became of the zygote before this one."""
        self._supervisors: set[int] = set()
        self._tidied = b""
        self.control.settimeout(ANSWER_LIMIT)

    def supervisor(self, replaces: int = 0) -> tuple[socket.socket, int]:
        """A new supervisor: (link to it, its pid).

        ``replaces`` is the pid of one that is lost: neither it nor a process of its jobs is there any more when the
        new one is. Raises RuntimeError when no zygote answers, or it cannot fork.
        """
        data, fds, flags = self._ask(b"supervisor %d" % replaces)
        if flags & socket.MSG_CTRUNC:
            raise RuntimeError("no supervisor can be started: this rank may have no more files open (ulimit -n)")
        if not fds:
            raise RuntimeError(f"no supervisor can be started: {data.decode()}")
        os.set_inheritable(fds[0], False)
        pid = int.from_bytes(data, "little")
        self._supervisors.discard(replaces)
        self._supervisors.add(pid)
        return socket.socket(fileno=fds[0]), pid

    def bury(self, pid: int) -> None:
        """End a supervisor, if it is still there, and everything that it had started. Raises RuntimeError when no
        zygote answers."""
        self._ask(_BURY + b"%d" % pid)
        self._supervisors.discard(pid)

    def _ask(self, request: bytes) -> tuple[bytes, list[int], int]:
        """The answer, with descriptors and flags; if need be another zygote's."""
        why = ""
        for n in range(_TRIES):
            if n:
                self._replace(why)
            try:
                self.control.send(request)
                data, fds, flags, _ = socket.recv_fds(self.control, 256, 1)
                if data:
                    return data, fds, flags
                why = _GONE
            except TimeoutError:
                if why == _SILENT:
                    break
                why = _SILENT
            except OSError:
                why = _GONE
        raise RuntimeError(why)

    def _replace(self, why: str) -> None:
        """Another zygote. The rank cannot fork it, as MPI is up; it starts it as a program."""
        self.control.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except OSError:
            pass
        told = {"path": [_ROOT, *sys.path], "mark": os.fsdecode(self.mark), "adopted": sorted(self._supervisors)}
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(ANSWER_LIMIT)
        try:
            self.pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-c", _MAIN, json.dumps(told)], os.environ,
                                      file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)], setsigmask=[])
        except OSError as error:
            raise RuntimeError(f"{why}; no other can be started: {error.strerror} (see ulimit -u)") from None
        finally:
            theirs.close()
        if self._tidied:
            self.control.send(_TIDY + self._tidied)
        self.on_replaced("was killed" if why == _GONE else f"did not answer for {ANSWER_LIMIT:.0f} s, and is ended")

    def tidy(self, path: str) -> None:
        """Have this directory and the sockets in it taken away when the rank is gone, however it went, unless another
        rank of the node still uses it."""
        self._tidied = os.fsencode(path)
        self.control.send(_TIDY + self._tidied)

    def close(self, patience: float = 10.0) -> None:
        """Hang up, and wait until it has left with all that is below it; at most ``patience`` seconds."""
        self.control.close()
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            try:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    return
            except ChildProcessError:
                return
            time.sleep(0.001)


def fork_zygote(preload: bool = True) -> Zygote:
    """Fork the zygote. Call before MPI is initialised.

    With ``preload`` it imports at once what supervisors need, while the rank is busy with MPI: they share it, and start
    sooner. Without, each supervisor does, for a rank that is not likely to have any.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return Zygote(ours, pid)
    try:
        _become_zygote(theirs.detach(), preload)
    except BaseException:
        os._exit(70)


def main(told: dict[str, list[str]]) -> NoReturn:
    """The life of a zygote that takes another one's place; its control is descriptor 3. ``told`` has the environment
    entry of jobs (``mark``) and the pids of supervisors that live (``adopted``)."""
    _become_zygote(3, True, os.fsencode(str(told["mark"])), [int(pid) for pid in told["adopted"]])


def _become_zygote(fd: int, preload: bool, mark: bytes = b"", adopted: Collection[int] = ()) -> NoReturn:
    os.dup2(fd, 3)
    os.closerange(4, 1 << 16)
    control = socket.socket(fileno=3)
    control.set_inheritable(False)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    # not the launcher's to signal: a KILL to the rank's group must leave somebody to clean up
    os.setpgid(0, 0)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    spawn.prctl(spawn.PR_SET_CHILD_SUBREAPER, 1)
    spawn.set_name(proctree.ZYGOTE)
    gc.disable()
    if preload:
        _preload()
    remove_abandoned(time.time())
    gc.freeze()
    _Zygote(control, mark, adopted).run()


def _preload() -> None:
    try:
        import mpiflux.node.burst
        import mpiflux.node.supervisor
        import mpiflux.node.topology.gpus  # noqa: F401
    except Exception:
        return  # the first supervisor says what is wrong


class _Zygote:
    def __init__(self, control: socket.socket, mark: bytes, adopted: Collection[int]) -> None:
        self.control, self.mark = control, mark
        self.supervisors: set[int] = set()
        self.adopted = set(adopted)
        """Supervisors of the zygote before this one: no children of ours, and what they leave is not ours either."""
        self.tidy = b""

    def run(self) -> NoReturn:
        signals = spawn.signalfd({signal.SIGCHLD})
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        deadline = 0.0
        while True:
            events = poll.poll(1000 if not deadline else 50)
            for fd, _ in events:
                if fd == signals:
                    os.read(signals, 4096)
                elif not self.answer():
                    # supervisors see the end of their own links, and end their jobs themselves
                    deadline = time.monotonic() + _END_WAIT
                    poll.unregister(self.control)
            self.reap()
            self.adopted = {pid for pid in self.adopted if proctree.is_of_instance(pid)}
            if deadline and (not (self.supervisors or self.adopted) or time.monotonic() > deadline):
                self.leave()

    def answer(self) -> bool:
        """One request of the rank; False when it is gone, maybe before it has heard the answer."""
        try:
            return self.serve()
        except ConnectionError:
            return False

    def serve(self) -> bool:
        """One request of the rank: fork a supervisor, send back its link. False when the rank is gone."""
        try:
            request = self.control.recv(4096)
        except OSError:
            request = b""
        if not request:
            return False
        if request.startswith(_TIDY):
            self.tidy = request[len(_TIDY):]
            return True
        self.bury(int(request.split()[1]))
        if request.startswith(_BURY):
            self.control.send(b"gone")
            return True
        try:
            ours, theirs = socket.socketpair()
            pid = os.fork()
        except OSError as error:
            self.control.send(f"{error.strerror} (see ulimit -u and ulimit -n)".encode())
            return True
        if pid == 0:
            self.control.close()
            ours.close()
            run_supervisor(theirs)
        theirs.close()
        self.supervisors.add(pid)
        socket.send_fds(self.control, [pid.to_bytes(8, "little")], [ours.fileno()])
        ours.close()
        return True

    def bury(self, pid: int) -> None:
        """See to it that a supervisor that is lost is gone, with all that it had started."""
        if pid in self.supervisors:
            # its jobs at once, also where it cannot die itself
            proctree.signal_tree([pid], signal.SIGKILL)
            deadline = time.monotonic() + _STUBBORN
            while not os.waitpid(pid, os.WNOHANG)[0] and time.monotonic() < deadline:
                time.sleep(0.001)
            self.supervisors.discard(pid)
        elif pid in self.adopted:
            self.bury_adopted(pid)
        self.end_orphans()
        remove_left((pid,))

    def bury_adopted(self, pid: int) -> None:
        deadline = time.monotonic() + _STUBBORN
        while proctree.is_of_instance(pid) and time.monotonic() < deadline:
            proctree.signal_tree([pid], signal.SIGKILL)
            time.sleep(0.001)
        self.adopted.discard(pid)

    def reap(self) -> None:
        died: list[int] = []
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            if pid in self.supervisors:
                self.supervisors.discard(pid)
                died.append(pid)
        if died or not self.supervisors:
            self.end_orphans()
            remove_left(died)

    def end_orphans(self) -> None:
        """Kill what came to us from supervisors that are no more, until nothing comes any longer."""
        for _ in range(200):
            orphans = [pid for pid in proctree.children(os.getpid()) if pid not in self.supervisors]
            if self.mark:
                orphans += proctree.abandoned(self.mark)
            if not orphans:
                return
            proctree.signal_tree(orphans, signal.SIGKILL)
            for pid in orphans:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    pass
            time.sleep(0.002)

    def leave(self) -> NoReturn:
        for pid in self.supervisors | self.adopted:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.01)
        ended = (*self.supervisors, *self.adopted)
        self.supervisors.clear()
        self.end_orphans()
        remove_left(ended)
        path = os.fsdecode(self.tidy)
        for _ in range(_LAST_LOOKS if path else 0):
            # ranks that are killed together are not gone at the same moment
            if is_deserted(path):
                remove_directory(path)
                break
            time.sleep(0.01)
        os._exit(0)


def is_deserted(path: str) -> bool:
    """Whether no rank holds a bell (:mod:`mpiflux.instance.bell`) in a door's directory any more."""
    for name in os.listdir(path) if os.path.isdir(path) else ():
        if name.startswith(BELL):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                try:
                    probe.connect(f"{path}/{name}")
                    return False
                except OSError:
                    continue
    return True


def run_supervisor(sock: socket.socket) -> NoReturn:
    """The life of a supervisor, from its fork to its end."""
    code = 1
    try:
        from mpiflux.node import burst
        from mpiflux.node.launch import Launcher
        from mpiflux.node.link import Link, LinkClosed
        from mpiflux.node.outbox import FLUSH
        from mpiflux.node.supervisor import YOUNG, Supervisor
        from mpiflux.node.topology.gpus import GPU_VARIABLES, gpu_environment
        from mpiflux.node.topology.types import Gpu

        spawn.prctl(spawn.PR_SET_CHILD_SUBREAPER, 1)
        link = Link(sock)
        frames: list[bytes] = []
        while not frames:
            select.select([sock], [], [])
            try:
                frames = link.receive()
            except LinkClosed:
                # its rank has died meanwhile
                os._exit(0)
        setup = msgspec.msgpack.decode(frames[0], type=Setup)
        base = {name: value for name, value in setup.environ.items() if os.fsdecode(name) not in GPU_VARIABLES}
        gpus = {number: Gpu(number, vendor, name, -1, "") for number, vendor, name in setup.gpus}
        node = tuple(gpus.values())
        launcher = Launcher(base, setup.cpus_of_core, lambda numbers: gpu_environment([gpus[n] for n in numbers], node),
                            setup.node_name)
        supervisor = Supervisor(link, launcher, setup.number, lambda: time.monotonic() + setup.clock_offset,
                                setup.patience)
        supervisor.burst = burst.build(supervisor, setup.clock_offset, YOUNG, FLUSH)
        supervisor.parallel.instance = setup.instance or supervisor.parallel.instance
        supervisor.run(frames[1:])
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)
