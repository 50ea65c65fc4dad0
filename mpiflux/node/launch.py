"""From a job's template to running processes: arguments, environment, files, binding."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Declare, NodeShare
from mpiflux.model.template import CompiledGroup
from mpiflux.node.spawn import Environment, Spawner, find_program

_DYNAMIC = 3  # MPIFLUX_JOB_ID, MPIFLUX_JOB_INDEX, MPIFLUX_ATTEMPT
_SHELL = b"/bin/sh"


class CannotStart(Exception):
    """The job cannot be executed. ``returncode`` is what a shell would give: 127 not found, 126 otherwise."""

    def __init__(self, returncode: int, reason: str) -> None:
        super().__init__(reason)
        self.returncode = returncode


class Lease:
    """Resources that jobs of one shape run on, one after the other."""

    def __init__(self, number: int, owner: int, shape: int, r_id: int, share: NodeShare) -> None:
        self.number, self.owner, self.shape, self.r_id, self.share = number, owner, shape, r_id, share
        self.cpus: tuple[frozenset[int], ...] = ()
        """CPUs of each task; an empty set binds nothing."""
        self.environ: dict[bytes, bytes] = {}
        self.environments: dict[int, Environment] = {}
        """Prepared environments by group."""


class Group:
    """A job group as a supervisor keeps it."""

    def __init__(self, declared: Declare, base: Mapping[bytes, bytes]) -> None:
        self.spec: JobGroup = declared.group
        self.limit = declared.output_limit
        self.compiled = CompiledGroup(declared.group, declared.workflow_dir)
        self.constant = {**base, **self.compiled.constant_env, b"MPIFLUX_JOB_NAME": os.fsencode(self.spec.name)}
        self.programs: dict[tuple[bytes, bytes], bytes] = {}
        """Where commands were found, by (name, directory); only what was found is kept."""


class Launcher:
    """Starts the tasks of jobs. Holds what all jobs of a node share."""

    def __init__(self, base: Mapping[bytes, bytes], cpus_of_core: Sequence[Sequence[int]],
                 gpu_environment: Callable[[Sequence[int]], Mapping[str, str]], node_name: str) -> None:
        self.base = dict(base)
        self.spawner = Spawner()
        self.cpus_of_core = cpus_of_core
        self.gpu_environment = gpu_environment
        self.node_name = node_name
        self._allowed = frozenset(os.sched_getaffinity(0))
        self._bound = self._allowed

    def prepare(self, lease: Lease) -> None:
        """Fill in what is the same for every job of a lease."""
        share = lease.share
        per_task = len(share.cores) // max(share.tasks, 1)
        lease.cpus = tuple(
            frozenset(cpu for core in share.cores[t * per_task:(t + 1) * per_task] for cpu in self.cpus_of_core[core])
            for t in range(share.tasks))
        environ = {
            "MPIFLUX_CORES": _idset(share.cores),
            "MPIFLUX_GPUS": _idset(share.gpus),
            "MPIFLUX_NODE_LIST": self.node_name,
            "MPIFLUX_TASK_COUNT": str(share.tasks),
            **self.gpu_environment(share.gpus),
        }
        lease.environ = {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}

    def start(self, group: Group, lease: Lease, index: int, attempt: int, fds: tuple[int, int, int]) -> list[int]:
        """Start all tasks of one job; returns their pids. Raises CannotStart, having started none."""
        compiled = group.compiled
        script = -1
        if group.spec.script is not None:
            script = _script_file(compiled.script(index, attempt))
            argv = _interpreter(script)
        else:
            argv = compiled.argv(index, attempt)
        try:
            return self._start_tasks(group, lease, index, attempt, argv, compiled.cwd(index, attempt), fds)
        finally:
            if script >= 0:
                os.close(script)

    def _start_tasks(self, group: Group, lease: Lease, index: int, attempt: int, argv: list[bytes], cwd: bytes,
                     fds: tuple[int, int, int]) -> list[int]:
        env = lease.environments.get(group.spec.number)
        if env is None:
            env = self._environment(group, lease)
        array, first = env.array, env.first
        array[first] = b"MPIFLUX_JOB_ID=%d" % (group.spec.first_id + index)
        array[first + 1] = b"MPIFLUX_JOB_INDEX=%d" % index
        array[first + 2] = b"MPIFLUX_ATTEMPT=%d" % attempt
        at = first + _DYNAMIC
        for name, value in group.compiled.env_items(index, attempt):
            array[at] = name + b"=" + value
            at += 1
        program = self._program(group, argv[0], cwd)
        pids: list[int] = []
        for task, cpus in enumerate(lease.cpus):
            if cpus and cpus != self._bound:
                self._bind(cpus)
            array[at] = b"MPIFLUX_TASK_RANK=%d" % task
            array[at + 1] = b"MPIFLUX_LOCAL_RANK=%d" % task
            pids.append(self._spawn(group, program, argv, env, fds, cwd, pids[0] if pids else 0))
        return pids

    def _environment(self, group: Group, lease: Lease) -> Environment:
        # what the launcher of this node says about GPUs must not show through where the lease has none
        items = {**group.constant, **lease.environ}
        dynamic = len(group.compiled.env_items(0, 1))
        env = lease.environments[group.spec.number] = Environment(items, _DYNAMIC + dynamic + 2)
        return env

    def _program(self, group: Group, name: bytes, cwd: bytes) -> bytes:
        if b"/" in name:
            return name
        found = group.programs.get((name, cwd))
        if found is None:
            try:
                found = find_program(name, group.constant.get(b"PATH", b"/usr/bin:/bin"), cwd)
            except OSError as error:
                raise _cannot(error, os.fsdecode(name), cwd) from None
            group.programs[name, cwd] = found
        return found

    def _spawn(self, group: Group, program: bytes, argv: list[bytes], env: Environment, fds: tuple[int, int, int],
               cwd: bytes, pgid: int) -> int:
        try:
            return self.spawner.spawn(program, argv, env, fds, cwd, pgid)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                # a script without a #! line: what a shell does with it
                return self.spawner.spawn(_SHELL, [_SHELL, program, *argv[1:]], env, fds, cwd, pgid)
            group.programs.pop((argv[0], cwd), None)
            raise _cannot(error, os.fsdecode(argv[0]), cwd) from None

    def _bind(self, cpus: frozenset[int]) -> None:
        """Bind ourselves: the child inherits it, which costs a tenth of binding it from inside."""
        try:
            os.sched_setaffinity(0, cpus)
            self._bound = cpus
        except OSError as error:
            raise CannotStart(126, f"cannot bind to CPUs {sorted(cpus)}: {error.strerror}; "
                                   "did the node's cgroup shrink?") from None

    def unbind(self) -> None:
        """Run anywhere again, so that a waiting supervisor does not sit on a busy job's core."""
        if self._bound is not self._allowed:
            try:
                os.sched_setaffinity(0, self._allowed)
            except OSError:
                return
            self._bound = self._allowed


def _cannot(error: OSError, name: str, cwd: bytes) -> CannotStart:
    if cwd and not os.path.isdir(cwd):
        return CannotStart(126, f"working directory {os.fsdecode(cwd)} does not exist or is not a directory")
    if error.errno == errno.ENOENT:
        return CannotStart(127, f"{name}: command not found")
    if error.errno in (errno.EAGAIN, errno.ENOMEM):
        return CannotStart(126, f"{name}: cannot start a process: {error.strerror} (see ulimit -u)")
    return CannotStart(126, f"{name}: {error.strerror}")


def _script_file(text: bytes) -> int:
    fd = os.memfd_create("mpiflux-script", 0)
    os.write(fd, text)
    return fd


def _interpreter(fd: int) -> list[bytes]:
    """The argument vector for a script in descriptor ``fd``, from its first line as ``execve`` reads it."""
    path = b"/dev/fd/%d" % fd
    line = os.pread(fd, 4096, 0).split(b"\n", 1)[0]
    if not line.startswith(b"#!"):
        return [_SHELL, path]
    words = line[2:].strip().split(None, 1)
    return [*words, path] if words else [_SHELL, path]


def _idset(numbers: Sequence[int]) -> str:
    from mpiflux.model.idset import encode

    return encode(numbers)
