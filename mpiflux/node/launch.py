"""From a job's template to running processes: arguments, environment, files, binding."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence

from mpiflux.model.idset import encode
from mpiflux.model.jobspec import STDIN, JobGroup
from mpiflux.model.messages import Declare, NodeShare
from mpiflux.model.template import CompiledGroup
from mpiflux.node.spawn import Environment, Spawner, StringArray, find_program, kill_group, string_array
from mpiflux.node.team import Team

_NUMBERS = (b"MPIFLUX_JOB_ID", b"MPIFLUX_JOB_INDEX", b"MPIFLUX_ATTEMPT", b"MPIFLUX_TASK_RANK", b"MPIFLUX_LOCAL_RANK")
"""Variables that every process is given anew."""
_ID, _INDEX, _ATTEMPT, _TASK_RANK, _LOCAL_RANK = range(5)
_SHELL = b"/bin/sh"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
_ENVIRONMENTS_KEPT = 64
_PLACES_KEPT = 256


class CannotStart(Exception):
    """The job cannot be executed. ``returncode`` is what a shell would give: 127 not found, 126 otherwise.

    ``passing``: for want of something that other processes hold, so that trying again may help.
    """

    def __init__(self, returncode: int, reason: str, passing: bool = False) -> None:
        super().__init__(reason)
        self.returncode, self.passing = returncode, passing


class Place:
    """A resource set as jobs see it."""

    def __init__(self, share: NodeShare, cpus: tuple[frozenset[int], ...], variables: dict[bytes, bytes]) -> None:
        self.share = share
        self.cpus = cpus
        """CPUs of each task; an empty set binds nothing."""
        self.variables = variables
        """``NAME=value`` by name."""
        self.environments: dict[int, Environment] = {}
        """By group."""


class Lease:
    """Resources that jobs of one shape run on, one after the other."""

    def __init__(self, number: int, owner: int, shape: int, r_id: int, tasks: int, place: Place) -> None:
        self.number, self.owner, self.shape, self.r_id = number, owner, shape, r_id
        self.tasks, self.place = tasks, place
        self.revoked = False
        """It ends with the job that runs on it now."""


class Group:
    """A job group as a supervisor keeps it. ``base`` has ``NAME=value`` by name."""

    def __init__(self, declared: Declare, base: Mapping[bytes, bytes]) -> None:
        spec = declared.group
        self.spec: JobGroup = spec
        self.number, self.first_id = spec.number, spec.first_id
        self.limit = declared.output_limit
        self.compiled = CompiledGroup(spec, declared.workflow_dir)
        secrets = {os.fsencode(name): value for name, value in declared.sealed.values.items()}
        own = {**self.compiled.constant_env, b"MPIFLUX_JOB_NAME": os.fsencode(spec.name), **secrets}
        hidden = set(map(os.fsencode, declared.sealed.hidden))
        self.variables = {**{name: entry for name, entry in base.items() if name not in hidden}, **_entries(own)}
        """``NAME=value`` by name, of what is the same for all its jobs."""
        self.varying = len(self.compiled.env_items(0, 1))
        for name in (*_NUMBERS, *(name for name, _ in self.compiled.env_items(0, 1))):
            self.variables.pop(name, None)
        self.parallel = spec.mpi != "none"
        """Even of one task, its jobs are parallel ones."""
        self.reads = spec.input == STDIN
        """Its jobs read what clients write to them."""
        self.files = bool((spec.input and not self.reads) or spec.output or spec.error)
        self._cwd = None if "{" in spec.cwd else self.compiled.cwd(0, 1)
        self.fixed_cwd = self._cwd is not None
        self.constant = self.compiled.is_constant
        """All its jobs have the same arguments and variables but for the numbers of the job."""
        self.programs: dict[tuple[bytes, bytes], bytes] = {}
        """Where commands were found, by (name, directory); only what was found is kept."""
        self.argv: list[bytes] = []
        self.argv_array: StringArray = string_array(())
        """The arguments of the latest job: mostly the next one's too."""

    def cwd(self, index: int, attempt: int) -> bytes:
        """The working directory; empty for ours."""
        return self.compiled.cwd(index, attempt) if self._cwd is None else self._cwd

    @property
    def search(self) -> bytes:
        """PATH."""
        return self.variables.get(b"PATH", b"PATH=/usr/bin:/bin")[5:]


class Launcher:
    """Starts the tasks of jobs. Holds what all jobs of a node share."""

    def __init__(self, base: Mapping[bytes, bytes], cpus_of_core: Sequence[Sequence[int]],
                 gpu_environment: Callable[[Sequence[int]], Mapping[str, str]], node_name: str) -> None:
        self.base = _entries(base)
        self.spawner = Spawner()
        self.cpus_of_core = cpus_of_core
        self.gpu_environment = gpu_environment
        self.node_name = node_name
        self.allowed = frozenset(os.sched_getaffinity(0))
        """CPUs that this process may use."""
        self.bound = self.allowed
        """Those it is bound to now."""
        self._default_policy = os.sched_getscheduler(0) == os.SCHED_OTHER
        self.behind = False
        """See :meth:`stay_behind`."""
        self._places: dict[NodeShare, Place] = {}

    def place(self, share: NodeShare) -> Place:
        """What is the same for every job on these resources."""
        found = self._places.get(share)
        if found is not None:
            return found
        per_task = len(share.cores) // max(share.tasks, 1)
        cpus = tuple(
            frozenset(cpu for core in share.cores[t * per_task:(t + 1) * per_task] for cpu in self.cpus_of_core[core])
            for t in range(share.tasks))
        variables = {
            "MPIFLUX_CORES": encode(share.cores),
            "MPIFLUX_GPUS": encode(share.gpus),
            "MPIFLUX_NODE": self.node_name,
            "MPIFLUX_NODE_LIST": self.node_name,
            "MPIFLUX_TASK_COUNT": str(share.tasks),
            **self.gpu_environment(share.gpus),
        }
        if declared := sum(not self.cpus_of_core[core] for core in share.cores):
            # an instance inside the job cannot see by its affinity that it has them
            variables["MPIFLUX_DECLARED_CORES"] = str(declared)
        if share.memory:
            variables["MPIFLUX_MEMORY"] = str(share.memory)
        entries = _entries({os.fsencode(name): os.fsencode(value) for name, value in variables.items()})
        found = Place(share, cpus, entries)
        if len(self._places) >= _PLACES_KEPT:
            self._places.clear()
        self._places[share] = found
        return found

    def start(self, group: Group, place: Place, index: int, attempt: int, fds: tuple[int, int, int],
              team: Team | None = None) -> list[int]:
        """Start all tasks of one job; returns their pids. Raises CannotStart, with none left running.

        ``team`` is that of a parallel job; its first task alone reads ``fds[0]``.
        """
        if team is not None and team.starts_all:
            from mpiflux.node import openmpi

            return openmpi.start(self, group, place, index, attempt, fds, team)
        compiled = group.compiled
        cwd = group.cwd(index, attempt)
        if group.spec.script is None:
            return self._start_tasks(group, place, index, attempt, compiled.argv(index, attempt), cwd, fds, team)
        text = compiled.script(index, attempt)
        script = _script_file(text)
        try:
            argv = interpreter(text, b"/dev/fd/%d" % script)
            return self._start_tasks(group, place, index, attempt, argv, cwd, fds, team)
        finally:
            os.close(script)

    def _start_tasks(self, group: Group, place: Place, index: int, attempt: int, argv: list[bytes], cwd: bytes,
                     fds: tuple[int, int, int], team: Team | None) -> list[int]:
        try:
            env = self.environment(group, place)
            env.set_number(_ID, group.first_id + index)
            env.set_number(_INDEX, group.spec.base + index)
            env.set_number(_ATTEMPT, attempt)
            if group.varying:
                for slot, (name, value) in enumerate(group.compiled.env_items(index, attempt)):
                    env.set_slot(slot, name + b"=" + value)
            if argv != group.argv:
                group.argv_array = string_array(argv)
                group.argv = argv
        except ValueError as error:
            raise CannotStart(126, f"cannot be executed: {error}") from None
        program = self.program(group, argv[0], cwd)
        if team is not None:
            return self._start_team(group, place, index, attempt, program, cwd, fds, team)
        pids: list[int] = []
        for cpus in place.cpus:
            self.bind(cpus)
            pids.append(self._spawn(group, program, env, fds, cwd, 0))
        return pids

    def _start_team(self, group: Group, place: Place, index: int, attempt: int, program: bytes, cwd: bytes,
                    fds: tuple[int, int, int], team: Team) -> list[int]:
        pids: list[int] = []
        try:
            for task, cpus in enumerate(place.cpus):
                self.bind(cpus)
                pid = 0
                env = self.task_environment(group, self.place(slice_of(place.share, task)), team.variables(task))
                numbers = (group.first_id + index, group.spec.base + index, attempt, team.first + task, task)
                for number, value in enumerate(numbers):
                    env.set_number(number, value)
                for slot, (name, text) in enumerate(group.compiled.env_items(index, attempt)):
                    env.set_slot(slot, name + b"=" + text)
                try:
                    pid = self._spawn(group, program, env, fds if not team.first + task else (team.null, *fds[1:]), cwd,
                                      pids[0] if pids else 0)
                finally:
                    team.started(task, pid)
                pids.append(pid)
        except (CannotStart, OSError) as error:
            if pids:
                kill_group(pids[0], 9)
            if isinstance(error, CannotStart):
                raise
            raise cannot(error, os.fsdecode(program)) from None
        return pids

    def task_environment(self, group: Group, place: Place, own: Mapping[str, str]) -> Environment:
        """That of one task of several. It is started once, and so not kept."""
        mine = _entries({os.fsencode(name): os.fsencode(value) for name, value in own.items()})
        return Environment(list({**group.variables, **place.variables, **mine}.values()), _NUMBERS, group.varying)

    def environment(self, group: Group, place: Place) -> Environment:
        """That of jobs of one task of this group on these resources."""
        found = place.environments.get(group.number)
        if found is not None:
            return found
        if len(place.environments) >= _ENVIRONMENTS_KEPT:
            place.environments.clear()
        constants = {**group.variables, **place.variables}
        env = place.environments[group.number] = Environment(list(constants.values()), _NUMBERS, group.varying)
        return env

    def program(self, group: Group, name: bytes, cwd: bytes) -> bytes:
        """The file that a command's first word stands for. Raises CannotStart."""
        if b"/" in name:
            return name
        found = group.programs.get((name, cwd))
        if found is None:
            try:
                found = find_program(name, group.search, cwd)
            except OSError as error:
                raise _cannot(error, os.fsdecode(name), cwd) from None
            group.programs[name, cwd] = found
        return found

    def _spawn(self, group: Group, program: bytes, env: Environment, fds: tuple[int, int, int], cwd: bytes,
               leader: int) -> int:
        try:
            return self.spawner.spawn(program, group.argv_array, env, fds, cwd, leader)
        except OSError as error:
            name = group.argv[0]
            if error.errno == errno.ENOEXEC:
                # a script without a #! line: what a shell does with it
                array = string_array([_SHELL, program, *group.argv[1:]])
                return self.spawner.spawn(_SHELL, array, env, fds, cwd, leader)
            group.programs.pop((name, cwd), None)
            raise _cannot(error, os.fsdecode(name), cwd, program) from None

    def bind(self, cpus: frozenset[int]) -> None:
        """What is started next is bound to these CPUs; an empty set binds it to nothing. Raises CannotStart."""
        if (cpus or self.allowed) != self.bound:
            self._bind(cpus or self.allowed)

    def _bind(self, cpus: frozenset[int]) -> None:
        """Bind ourselves: the child inherits it, which costs a tenth of binding it from inside."""
        try:
            os.sched_setaffinity(0, cpus)
            self.bound = cpus
        except OSError as error:
            raise CannotStart(126, f"cannot bind to CPUs {sorted(cpus)}: {error.strerror}; "
                                   "did the node's cgroup shrink?") from None

    def stay_behind(self, on: bool) -> None:
        """Whether our waking up should not interrupt the job that runs on our core.

        Good where there is one job at a time: without it each start of a process takes two switches to us and back. Bad
        where there are several, as the next start would wait for the core of the last.
        """
        if on is self.behind or not self._default_policy:
            return
        try:
            os.sched_setscheduler(0, os.SCHED_BATCH if on else os.SCHED_OTHER, os.sched_param(0))
        except OSError:
            return
        self.behind = on
        self.spawner.reset_policy(on)

    def unbind(self) -> None:
        """Run anywhere again, so that we do not wait for a core whose job is busy."""
        if self.bound is not self.allowed:
            try:
                self._bind(self.allowed)
            except CannotStart:
                pass  # the next job's own binding tells


def slice_of(share: NodeShare, task: int) -> NodeShare:
    """What one task of a share has of it: a share's cores and GPUs are in the order of its tasks."""
    cores, gpus = len(share.cores) // share.tasks, len(share.gpus) // share.tasks
    return NodeShare(share.node, share.cores[task * cores:(task + 1) * cores],
                     share.gpus[task * gpus:(task + 1) * gpus], share.memory // share.tasks, 1)


def open_files(group: Group, index: int, attempt: int, fds: tuple[int, int, int], opened: list[int],
               flags: int = os.O_TRUNC) -> tuple[int, int, int]:
    """Put the files that a job names in place of ``fds``; ``flags`` are added when one is opened for writing.

    What is put into ``opened`` is to be closed once the job has started, also when OSError is raised.
    """
    compiled = group.compiled
    cwd = group.cwd(index, attempt)
    stdin, stdout, stderr = fds
    if not group.reads and (name := compiled.input(index, attempt)):
        stdin = os.open(os.path.join(cwd, name), os.O_RDONLY | os.O_CLOEXEC)
        opened.append(stdin)
    output, error = compiled.output(index, attempt), compiled.error(index, attempt)
    if output:
        stdout = os.open(os.path.join(cwd, output), _CREATE | flags, 0o666)
        opened.append(stdout)
    if error and error == output:
        stderr = stdout
    elif error:
        stderr = os.open(os.path.join(cwd, error), _CREATE | flags, 0o666)
        opened.append(stderr)
    return stdin, stdout, stderr


def _entries(variables: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: name + b"=" + value for name, value in variables.items()}


def _cannot(error: OSError, name: str, cwd: bytes, program: bytes = b"") -> CannotStart:
    if cwd and not os.path.isdir(cwd):
        return CannotStart(126, f"working directory {os.fsdecode(cwd)} does not exist or is not a directory")
    if error.errno == errno.ENOENT and program and os.path.exists(os.path.join(cwd, program)):
        return CannotStart(127, f"{name}: the interpreter or loader that it names is not there (see its first line, or "
                                "ldd)")
    if error.errno == errno.ENOENT:
        return CannotStart(127, f"{name}: command not found")
    if error.errno == errno.E2BIG:
        return CannotStart(126, f"{name}: its arguments and environment are longer than the kernel takes "
                                "(see getconf ARG_MAX; one argument may have 128 KiB)")
    return cannot(error, name)


def cannot(error: OSError, name: str) -> CannotStart:
    """The failure of a system call on behalf of ``name``, with the limit to look at."""
    if error.errno in (errno.EAGAIN, errno.ENOMEM):
        return CannotStart(126, f"{name}: cannot start a process: {error.strerror} (see ulimit -u)", True)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return CannotStart(126, f"{name}: {error.strerror} (see ulimit -n)", True)
    return CannotStart(126, f"{name}: {error.strerror}")


def _script_file(text: bytes) -> int:
    try:
        fd = os.memfd_create("mpiflux-script", 0)
    except OSError as error:
        raise cannot(error, "script") from None
    with open(fd, "wb", closefd=False) as file:
        file.write(text)
    return fd


def interpreter(text: bytes, path: bytes) -> list[bytes]:
    """The argument vector for a script that is at ``path``, from its first line as ``execve`` reads it."""
    line = text[:4096].split(b"\n", 1)[0]
    if not line.startswith(b"#!"):
        return [_SHELL, path]
    words = line[2:].strip().split(None, 1)
    return [*words, path] if words else [_SHELL, path]
