"""What the benchmark scripts share: building the bare loop, running mpiflux as a user would, counting CPU."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXAMPLES = ROOT / "docs" / "examples"

# users have byte code: without, every rank would compile every module at every start
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def loaded() -> str:
    """Says so when others use the machine; for the end of a table's heading."""
    load = os.getloadavg()[0]
    return f"loaded: load average {load:.1f}" if load > 1.5 else "quiet"


@dataclass
class Usage:
    """One command, with everything it started and waited for."""

    wall: float
    cpu: float
    """User and system seconds."""
    output: str = ""
    """What it printed."""


def machine() -> str:
    """One line that names the machine."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return (f"{model}, {len(os.sched_getaffinity(0))} usable CPUs, Linux {platform.release()}, "
            f"Python {platform.python_version()}")


def timed(argv: list[str], *, cwd: str | None = None, timeout: float = 600) -> Usage:
    """Run to the end; raises CalledProcessError with what it printed when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    done = subprocess.run(argv, cwd=cwd, timeout=timeout, capture_output=True, stdin=subprocess.DEVNULL)
    wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.stderr.write((done.stdout + done.stderr).decode(errors="replace"))
        raise subprocess.CalledProcessError(done.returncode, argv)
    return Usage(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
                 done.stdout.decode(errors="replace"))


def launcher(ranks: int) -> list[str]:
    """How to start mpiflux on this many ranks: nothing before it for one."""
    if ranks == 1:
        return []
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not mpiexec:
        raise SystemExit("no mpiexec: install mpiflux[mpich]")
    return [mpiexec, "-n", str(ranks)]


def run_workflow(workflow: Path | str, run_dir: str, *options: str, ranks: int = 1, timeout: float = 600) -> Usage:
    """``mpiflux run`` as a user would type it."""
    argv = [*launcher(ranks), sys.executable, "-m", "mpiflux", "run", str(workflow), "--run-dir", run_dir,
            "--progress", "none", *options]
    return timed(argv, timeout=timeout)


def spawn_loop(directory: str) -> str:
    """Build the bare C loop; its path."""
    binary = os.path.join(directory, "spawn_loop")
    subprocess.run(["cc", "-O2", "-o", binary, str(HERE / "spawn_loop.c")], check=True)
    return binary


class Scratch:
    """A directory that goes when the benchmark ends."""

    def __enter__(self) -> str:
        self.path = tempfile.mkdtemp(prefix="mpiflux-bench-")
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def table(rows: list[tuple[object, ...]], heads: tuple[str, ...]) -> str:
    """Rows as aligned text."""
    cells = [heads, *[tuple(str(cell) for cell in row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in cells)
