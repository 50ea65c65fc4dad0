"""What ``mpiflux doctor`` says of the machine, alone and on all ranks of a launcher."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.mpi import installed_stack
from tests.support.pretend import stack_of_nodes
from tests.support.runs import ROOT, Place


def test_alone(place: Place) -> None:
    done = place.call("doctor", "--json", status=None)
    found = json.loads(done.stdout)
    assert (found["launcher"], found["ranks"], found["nodes"]) == ("none", 1, 1)
    (me,) = found["rank"]
    assert me["cpus"] == len(os.sched_getaffinity(0)) and me["open_files"] and me["processes"]
    assert found["run_dir"] == str(place.path) and found["file_system"] != "?"
    assert done.returncode == (1 if found["problems"] else 0)
    text = place.call("doctor", status=None).stdout
    assert "none: this process alone" in text and found["file_system"] in text


def test_what_looks_wrong_is_said_with_what_mends_it(place: Place) -> None:
    shell = "ulimit -n 128; exec python -m mpiflux doctor --json"
    place.write("d.sh", shell)
    name = place.new()
    done = place.call("start", "--run-dir", name, "--", "sh", "d.sh", status=1)
    problems = json.loads(done.stdout.splitlines()[0])["problems"]
    assert any("ulimit -n allows 128: raise" in text for text in problems)


@pytest.mark.mpi
def test_all_ranks_of_a_launcher(place: Place, tmp_path: Path) -> None:
    from tests.support.mpi import run_mpi

    done = run_mpi(4, ["-m", "mpiflux", "doctor", "--json"], stack=stack_of_nodes(tmp_path, 2), cwd=place.path,
                   env={"PYTHONPATH": str(ROOT)})
    found = json.loads(done.stdout)
    kind = {"mpich": "hydra", "openmpi": "openmpi"}[installed_stack().name]
    assert (found["launcher"], found["ranks"], found["world"], found["nodes"]) == (kind, 4, 4, 2)
    assert [one["node"] for one in found["rank"]] == ["n0", "n0", "n1", "n1"]
    assert any("looks local to n0" in text or "does not outlive" in text for text in found["problems"])
    assert done.returncode == 1


@pytest.mark.mpi
def test_ranks_of_its_own(place: Place) -> None:
    """As ``run --ranks`` would start them; with Open MPI that is what looks wrong."""
    done = place.call("doctor", "--ranks", "2", "--json", status=None)
    found = json.loads(done.stdout)
    assert (found["launcher"], found["ranks"]) == ("mpiflux", 2)
    if installed_stack().name == "mpich":
        assert found["world"] == 2 and len(found["rank"]) == 2
        assert done.returncode == (1 if found["problems"] else 0)
    else:
        assert done.returncode == 1 and any("--ranks starts MPI libraries" in text for text in found["problems"])
