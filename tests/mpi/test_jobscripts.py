"""The scripts of jobscripts/ for systems that are not here, with stand-ins for their launchers; the shell of all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.mpi import MpiRun, clean_environment, installed_stack
from tests.support.runs import LIMIT, ROOT, Place, Run

SCRIPTS = sorted((ROOT / "jobscripts").glob("*.sh"))
STAND_IN = """#!/bin/sh
# notes its options, and starts what follows them on two ranks
case "$1 $2" in "job timeleft") echo 600; exit ;; esac
while [ $# -gt 0 ] && [ "$1" != python ]; do printf '%s ' "$1" >>"$STAND_IN_LOG"; shift; done
if [ $# = 0 ]; then echo 2; exit; fi
shift
unset PBS_NODEFILE LSB_JOBID  # a real mpiexec would start its ranks on those nodes
exec {mpiexec}
"""
RANK = """#!/bin/sh
[ -z "$OMPI_COMM_WORLD_RANK" ] || export JSM_NAMESPACE_RANK=$OMPI_COMM_WORLD_RANK JSM_NAMESPACE_SIZE=2 JSM_NAMESPACE=1
exec {python} "$@"
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_its_shell_is_right_and_says_what_to_edit(script: Path) -> None:
    text = script.read_text()
    shell = text.split("\n")[0].removeprefix("#!")
    assert shell in ("/bin/sh", "/bin/bash")
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0 and not done.stderr
    assert "EDIT" in text and script.name in (ROOT / "jobscripts/README.md").read_text()
    assert script.stat().st_mode & 0o111


@pytest.mark.mpi
@pytest.mark.parametrize("script, launcher, options", [
    ("lsf", "jsrun", "-n 2 -r 1 -a 1 -c 42 -g 6 -d packed -b rs"),
    ("pbs", "mpiexec", "-n 2 --ppn 1 --cpu-bind none"),
    ("flux", "flux", "getattr size run -N 2 --tasks-per-node=1 --exclusive -o cpu-affinity=off -o gpu-affinity=off"),
])
def test_with_a_stand_in(place: Place, tmp_path: Path, script: str, launcher: str, options: str) -> None:
    stack = installed_stack()
    programs = tmp_path / "bin"
    programs.mkdir()
    rank = programs / "rank"
    rank.write_text(RANK.format(python=stack.python))
    (programs / launcher).write_text(STAND_IN.format(
        mpiexec=" ".join([*stack.command(2, [])[:-1], str(rank)]) + ' "$@"'))
    for path in programs.iterdir():
        path.chmod(0o755)
    (tmp_path / "nodes").write_text("a\na\nb\n")
    (tmp_path / "hosts").write_text("batch\na\na\nb\n")
    place.write("w.yaml", {"jobs": {"a": {"command": "echo {i}", "parameters": {"i": {"range": 3}}}}})
    place.expected.add("run")
    environ = clean_environment({**stack.settings(), "PYTHONPATH": str(ROOT), "PBS_NODEFILE": str(tmp_path / "nodes"),
                                 "LSB_DJOB_HOSTFILE": str(tmp_path / "hosts") if script == "lsf" else None,
                                 "STAND_IN_LOG": str(tmp_path / "log"), "LSB_JOBID": "7" if script == "lsf" else None})
    environ["PATH"] = f"{programs}:{environ['PATH']}"
    with MpiRun(["bash", str(ROOT / "jobscripts" / f"{script}.sh"), "w.yaml", "run"], environ, place.path) as running:
        done = running.wait(LIMIT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text().split() == options.split()
    run = Run(place.path / "run")
    assert (run.results(), run.meta()["ranks"]) == ({"COMPLETED": 3}, 2)


def test_the_laptop_s_goes_on_where_it_was(place: Place) -> None:
    place.write("w.yaml", {"jobs": {"a": {"command": "true"}}})
    place.expected.add("run-w")
    for _ in range(2):
        environ = clean_environment({"PYTHONPATH": str(ROOT)})
        with MpiRun(["sh", str(ROOT / "jobscripts/laptop.sh"), "w.yaml"], environ, place.path) as running:
            done = running.wait(LIMIT)
        assert done.returncode == 0, done.stderr
    assert Run(place.path / "run-w").results() == {"COMPLETED": 1}
