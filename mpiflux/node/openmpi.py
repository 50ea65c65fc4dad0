"""A job of Open MPI on this node, as its supervisor sees it: one process, :mod:`mpiflux.node.mpirun`, and a directory
with what becomes its tasks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence

from mpiflux.model import hostlist, openmpi, pmixlooks
from mpiflux.model.pmi import Abort
from mpiflux.node.launch import CannotStart, Group, Launcher, Place, cannot, interpreter, slice_of
from mpiflux.node.scratch import base, make_directory, prefix, remove_directory
from mpiflux.node.spawn import find_program, string_array
from mpiflux.node.team import Team

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_RUN = f"import sys; sys.path.insert(0, {_ROOT!r}); from mpiflux.node.mpirun import main; main()"
_BIND = (b"import os, sys; os.sched_setaffinity(0, map(int, sys.argv[1].split(','))); "
         b"os.execvp(sys.argv[2], sys.argv[2:])")
_SEARCH = b"/usr/local/bin:/usr/bin:/bin"

NO_MPIRUN = ("mpi: pmix needs Open MPI's mpirun, and there is none in the job's PATH: load Open MPI's module, or say "
             "env: {PATH: ...}")


class MpirunTeam(Team):
    """The tasks of a job with ``mpi: pmix``. To PMI-1 it has one rank a node, whatever the number of its tasks.

    Call :meth:`prepare` and :meth:`write_task` before its process is started.
    """

    starts_all = True

    def __init__(self, tasks: Sequence[int], part: int, hosts: str, host: str, kvsname: str) -> None:
        super().__init__((1,) * len(tasks), part, hosts, host, kvsname)
        self.tasks = tuple(tasks)
        """Of each node."""
        self.directory = ""
        self._lock = -1

    def prepare(self) -> None:
        """Make the directory, in memory where that can be: Open MPI puts there what its tasks share. Raises OSError."""
        self.directory = os.path.join(base(), prefix(os.getpid()) + self.kvsname)
        self._lock = make_directory(self.directory)
        os.mkfifo(self._ends, 0o600)

    def write(self, name: str, content: bytes) -> str:
        """A file in the directory; returns its path."""
        path = f"{self.directory}/{name}"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700), "wb") as file:
            file.write(content)
        return path

    def write_task(self, task: int, variables: Mapping[bytes, bytes | None], cpus: frozenset[int],
                   words: Sequence[bytes]) -> None:
        """What becomes the ``task``-th task of this node: bound to ``cpus``, if any."""
        own = {**variables, b"MPIFLUX_TASK_COUNT": b"%d" % sum(self.tasks),
               b"MPIFLUX_NODE_LIST": os.fsencode(self.hosts), b"MPIFLUX_LOCAL_RANK": b"%d" % task,
               b"MPIFLUX_TASKS": None}
        if not cpus:
            own.update({os.fsencode(name): os.fsencode(value) for name, value in openmpi.OVERSUBSCRIBED.items()})
        for name in (b"OMPI_MCA_btl_sm_backing_directory", b"OMPI_MCA_btl_vader_backing_directory"):
            # what is left of a job that was killed goes with the directory
            own.setdefault(name, os.fsencode(self.directory))
        first = not self.part and not task
        stdin = os.fsencode(self.directory) + b"/stdin" if first else b""
        self.write(str(task), openmpi.task_line(own, [*binder(cpus), *words], self._ends, stdin, first,
                                                not task))

    @property
    def _ends(self) -> bytes:
        return os.fsencode(self.directory) + b"/ends"

    def argv(self, mpirun: bytes) -> list[bytes]:
        """The process that this node needs."""
        told = {"directory": self.directory, "mpirun": os.fsdecode(mpirun), "tasks": self.tasks,
                "nodes": hostlist.decode(self.hosts), "part": self.part}
        return [os.fsencode(word) for word in (sys.executable, "-I", "-S", "-c", _RUN, json.dumps(told))]

    def name(self, rank: int) -> str:
        what = "Open MPI's daemon" if self.part else "mpirun"
        return f"{what} on {self.host}"

    def aborted(self, action: Abort) -> tuple[int, str]:
        return action.code, action.message

    def oddity(self) -> str:
        alone = self.pmi is not None and self.pmi.server.value(pmixlooks.ALONE.encode())
        return pmixlooks.nobody_came(sum(self.tasks)) if alone else ""

    def close(self) -> None:
        if self.pmi is not None:
            self.pmi.close()
        if self.directory:
            remove_directory(self.directory)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def start(launcher: Launcher, group: Group, place: Place, index: int, attempt: int, fds: tuple[int, int, int],
          team: Team) -> list[int]:
    """Start a job's process on this node; returns its pid. Raises CannotStart."""
    assert isinstance(team, MpirunTeam)
    cwd = group.cwd(index, attempt)
    varying = dict(group.compiled.env_items(index, attempt))
    try:
        team.prepare()
        words = _words(launcher, group, index, attempt, cwd, team)
        _write_tasks(launcher, group, place, varying, words, team)
        search = varying.get(b"PATH", group.search)
        argv = team.argv(find_program(b"mpirun", search, cwd))
    except FileNotFoundError:
        raise CannotStart(127, NO_MPIRUN) from None
    except OSError as error:
        raise cannot(error, os.fsdecode(error.filename or team.directory)) from None
    except ValueError as error:
        raise CannotStart(126, f"cannot be executed: {error}") from None
    launcher.bind(frozenset().union(*place.cpus) if all(place.cpus) else frozenset())
    pid = 0
    env = launcher.task_environment(group, place, team.variables(0))
    for number, value in enumerate((group.first_id + index, group.spec.base + index, attempt, 0, 0)):
        env.set_number(number, value)
    for slot, (name, text) in enumerate(varying.items()):
        env.set_slot(slot, name + b"=" + text)
    try:
        pid = launcher.spawner.spawn(argv[0], string_array(argv), env, (team.null, *fds[1:]) if team.part else fds, cwd)
    except OSError as error:
        raise cannot(error, os.fsdecode(argv[0])) from None
    finally:
        team.started(0, pid)
    return [pid]


def _words(launcher: Launcher, group: Group, index: int, attempt: int, cwd: bytes, team: MpirunTeam) -> list[bytes]:
    """The command of each task."""
    if group.spec.script is None:
        argv = group.compiled.argv(index, attempt)
    else:
        # what is between us and the tasks keeps no descriptor
        text = group.compiled.script(index, attempt)
        argv = interpreter(text, os.fsencode(team.write("script", text)))
    string_array(argv)
    return [launcher.program(group, argv[0], cwd), *argv[1:]]


def _write_tasks(launcher: Launcher, group: Group, place: Place, varying: Mapping[bytes, bytes], words: Sequence[bytes],
                 team: MpirunTeam) -> None:
    every: dict[bytes, bytes | None] = dict.fromkeys(place.variables)
    every[b"TMPDIR"] = varying.get(b"TMPDIR", _value(group.variables.get(b"TMPDIR")))
    words = [*_unspeakable(group, varying), *words]
    for task in range(place.share.tasks):
        own = launcher.place(slice_of(place.share, task))
        variables = {name: _value(entry) for name, entry in own.variables.items()}
        team.write_task(task, {**every, **variables}, place.cpus[task], words)


def _unspeakable(group: Group, varying: Mapping[bytes, bytes]) -> list[bytes]:
    """The words in front of a program that give it the variables that would not get through the shell before it."""
    entries = {**group.variables, **{name: name + b"=" + value for name, value in varying.items()}}
    odd = [entry for name, entry in entries.items() if not openmpi.is_shells(name) and not name.startswith(b"-")]
    return [find_program(b"env", _SEARCH, b""), *odd] if odd else []


def _value(entry: bytes | None) -> bytes | None:
    """Of ``NAME=value``."""
    return None if entry is None else entry.partition(b"=")[2]


def binder(cpus: frozenset[int]) -> list[bytes]:
    """The words in front of a program that is to be bound: taskset takes a tenth of what starting Python does."""
    if not cpus:
        return []
    listed = b",".join(b"%d" % cpu for cpu in sorted(cpus))
    try:
        return [find_program(b"taskset", os.environb.get(b"PATH", _SEARCH) + b":" + _SEARCH, b""), b"-c", listed]
    except OSError:
        return [os.fsencode(sys.executable), b"-I", b"-S", b"-c", _BIND, listed]
