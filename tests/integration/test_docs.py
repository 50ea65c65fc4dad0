"""Every workflow and every mpiflux command shown in the README and the tutorial is run as written.

The blocks of a page are taken in order: a ``yaml`` block with ``jobs`` becomes NAME.yaml after its own ``name``, the
lines of a ``sh`` block are run in a scratch directory, a ``python`` block after them. Lines that set up an environment
are left to ``make install``, which CI runs before this.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SETUP = ("make ", "python3 -m venv", "pip install", "source ", ". ")
MPIEXEC = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
           "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
"""What Open MPI's mpiexec wants of a test that may be root on two cores; MPICH's takes no notice."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
SIM = """#!/bin/sh
echo "$2 $4"
"""


def commands(block: str) -> list[str]:
    lines = [line.split("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", *SETUP))]


def run(argv: list[str], directory: Path, **environ: str) -> str:
    beside = os.path.dirname(sys.executable)
    env = {**os.environ, **MPIEXEC, "PYTHONPATH": str(ROOT), "PATH": f"{beside}:{os.environ['PATH']}", **environ}
    done = subprocess.run(argv, cwd=directory, env=env, capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{shlex.join(argv)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_page(page: str, directory: Path, environ: dict[str, str]) -> list[str]:
    ran = []
    for language, block in BLOCK.findall((ROOT / page).read_text()):
        if language == "yaml":
            document = yaml.safe_load(block)
            if "jobs" in document and "name" in document:
                (directory / f"{document['name']}.yaml").write_text(block)
        elif language == "python":
            run([sys.executable, "-c", block], directory, **environ)
            ran.append("python")
        elif language == "sh" and "#SBATCH" not in block:
            for line in commands(block):
                words = shlex.split(line)
                program = {"mpiflux": [sys.executable, "-m", "mpiflux"], "python": [sys.executable]}
                run([*program.get(words[0], [words[0]]), *words[1:]], directory)
                ran.append(line)
    return ran


@pytest.mark.mpi
def test_readme(tmp_path):
    (tmp_path / "sim").write_text(SIM)
    (tmp_path / "sim").chmod(stat.S_IRWXU)
    (tmp_path / "fit.py").write_text("print('fitted')\n")
    ran = run_page("README.md", tmp_path, {})
    assert sum(line.startswith("mpiflux") for line in ran) >= 7
    assert run([sys.executable, "-m", "mpiflux", "kvs", "get", "job.10001.stdout", "out"], tmp_path) == "fitted\n"
    with open(tmp_path / "results.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 10_001


@pytest.mark.mpi
def test_tutorial(tmp_path):
    ran = run_page("docs/tutorial.md", tmp_path, {"MPIFLUX_RUN_DIR": str(tmp_path / "study.out")})
    assert any(line.startswith("mpiexec") for line in ran) and "python" in ran
    assert sum(line.startswith("mpiflux") for line in ran) >= 9


def test_coordination(tmp_path):
    (tmp_path / "sim").write_text("#!/bin/sh\necho $1\n")
    (tmp_path / "sim").chmod(stat.S_IRWXU)
    mpiflux = [sys.executable, "-m", "mpiflux"]
    programs = [block for language, block in BLOCK.findall((ROOT / "docs/coordination.md").read_text())
                if language == "python"]
    for i, program in enumerate(programs):
        run([*mpiflux, "start", "--cores-per-node", "2", "--run-dir", str(i), "--", sys.executable, "-c", program],
            tmp_path)
    assert len(programs) == 2 and run([*mpiflux, "kvs", "get", "results.3", "0"], tmp_path) == "0.3\n\n"
    assert run([*mpiflux, "kvs", "ls", "-R", "1"], tmp_path).split() == ["members.first", "ready"]


def test_reliability(tmp_path):
    ran = run_page("docs/reliability.md", tmp_path, {})
    assert sum(line.endswith("--resume") for line in ran) == 1
    assert [(tmp_path / f"result.{i}").read_text() for i in range(4)] == ["computed by attempt 1\n"] * 4


def test_simulate(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "log.swf").write_text("1 0 -1 60 8 -1 -1 8 90 -1 1 1 1 -1 1 1 -1 -1\n"
                                      "2 5 -1 30 4 -1 -1 4 60 -1 1 1 1 -1 1 1 -1 -1\n")
    ran = run_page("docs/simulate.md", tmp_path, {})
    assert sum(line.startswith("mpiflux simulate") for line in ran) >= 5 and (tmp_path / "use.png").exists()


@pytest.mark.parametrize("workflow", sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.yaml")))
def test_every_example_is_valid(workflow, tmp_path):
    assert ": ok, " in run([sys.executable, "-m", "mpiflux", "validate", str(ROOT / workflow)], tmp_path)


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for page in ("README.md", "docs/tutorial.md", "docs/architecture.md", "docs/reliability.md",
                 "docs/performance.md", "jobscripts/README.md"):
        here = ROOT / page
        for target in re.findall(r"\]\(([^)#:]+)\)", here.read_text()):
            assert (here.parent / target).exists(), f"{page} links to {target}"
