"""A real Slurm of emulated nodes on this machine, for tests. See tests/slurm/slurm-sandbox for what it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.leaks import MARK
from tests.support.mpi import MpiRun, clean_environment, installed_stack

SCRIPT = Path(__file__).parents[1] / "slurm" / "slurm-sandbox"
PACKAGES = "slurm-wlm slurm-wlm-basic-plugins munge libpmix-dev"


def unavailable() -> str:
    """Why there can be no sandbox here, or nothing when there can."""
    if os.getuid() != 0:
        return "needs root"
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [c for c in ("munged", "slurmctld", "slurmd", "srun", "unshare") if not shutil.which(c, path=path)]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install {PACKAGES}"
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode != 0:
        return "this container may not make UTS and mount namespaces (CAP_SYS_ADMIN)"
    return ""


class Slurm:
    """A running sandbox of nodes named n0, n1, … with so many ``cpus`` and ``gpus`` made-up GPUs each."""

    def __init__(self, cpus: Sequence[int] = (4, 4, 4, 2), gpus: int = 2, kill_wait: int = 2) -> None:
        self.nodes, self.cpus, self.gpus = len(cpus), tuple(cpus), gpus
        self._directory = Path(tempfile.mkdtemp(prefix="mf-slurm-"))
        # the daemons outlive the test that needed them first: they carry no test's mark, nor its TMPDIR
        self._env = clean_environment({
            "NODES": str(self.nodes), "CPUS": ",".join(map(str, cpus)), "GPUS": str(gpus), "KILLWAIT": str(kill_wait),
            "SLURM_SANDBOX_DIR": str(self._directory / "w"), MARK: None, "TMPDIR": None,
        })
        try:
            self._control("start")
        except BaseException:
            self.stop()
            raise

    def _control(self, action: str) -> None:
        done = subprocess.run([str(SCRIPT), action], env=self._env, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120)
        if done.returncode != 0:
            raise RuntimeError(f"slurm-sandbox {action}: {done.stderr}{self._logs()}")

    def _logs(self) -> str:
        ends = [f"-- {log.name}\n{log.read_text(errors='replace')[-2000:]}"
                for log in sorted(self._directory.glob("w/log/*.log"))]
        return "\n".join(ends)

    def environment(self, extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """What makes srun, sbatch and the others talk to this sandbox."""
        return clean_environment({"SLURM_CONF": str(self._directory / "w/etc/slurm.conf"), **(extra or {})})

    def start(self, command: Sequence[str], *, env: Mapping[str, str | None] | None = None,
              cwd: str | os.PathLike[str] | None = None) -> MpiRun:
        """A Slurm command (srun, salloc, …), running."""
        return MpiRun(command, self.environment(env), cwd)

    def run(self, command: Sequence[str], *, timeout: float = 60.0, env: Mapping[str, str | None] | None = None,
            cwd: str | os.PathLike[str] | None = None) -> subprocess.CompletedProcess[str]:
        """A Slurm command to its end. After ``timeout`` seconds its processes are killed: MpiTimeoutError."""
        with self.start(command, env=env, cwd=cwd) as run:
            return run.wait(timeout)

    def run_mpi(self, nodes: int, per_node: int, argv: Sequence[str], *, timeout: float = 60.0,
                env: Mapping[str, str | None] | None = None, cwd: str | os.PathLike[str] | None = None,
                options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """``python argv…`` as ranks on ``nodes`` nodes, started as the installed MPI wants it. ``options`` are Slurm's.

        MPICH: srun and PMI-2. Open MPI 5, which Debian's Slurm cannot always start: its own mpiexec in an allocation.
        """
        stack = installed_stack()
        size = [f"-N{nodes}", f"--ntasks-per-node={per_node}", *options]
        if stack.name == "mpich":
            command = ["srun", *size, "--mpi=pmi2", stack.python, *argv]
        else:
            command = ["salloc", "-Q", *size, *stack.command(nodes * per_node, argv)]
        return self.run(command, timeout=timeout, env={**stack.settings(), **(env or {})}, cwd=cwd)

    def submit(self, argv: Sequence[str], *, env: Mapping[str, str | None] | None = None,
               cwd: str | os.PathLike[str] | None = None) -> int:
        """``sbatch argv…``; the number of the job."""
        done = self.run(["sbatch", "--parsable", *argv], env=env, cwd=cwd)
        if done.returncode != 0:
            raise RuntimeError(f"sbatch {argv}: {done.stderr}")
        return int(done.stdout.split(";")[0])

    def state(self, job: int) -> str:
        """What Slurm says of a job: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, CANCELLED…"""
        done = self.run(["scontrol", "-o", "show", "job", str(job)])
        return next((word.partition("=")[2] for word in done.stdout.split() if word.startswith("JobState=")), "")

    def idle(self) -> bool:
        """No job is queued or running."""
        return self.run(["squeue", "-h"]).stdout.strip() == ""

    def stop(self) -> None:
        """End every daemon and step of this sandbox and remove its files."""
        try:
            self._control("stop")
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)
