"""``jobscripts/lsf.sh`` as LSF would start it: on a launch node, with a stand-in for jsrun that is a PMIx launcher."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import Hosts, lent
from tests.support.mpi import installed_stack
from tests.support.runs import LIMIT, ROOT, Done, Place, Run

pytestmark = pytest.mark.mpi
STAND_IN = ROOT / "tests/support/jsrun"


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """The launch node h0, and two nodes."""
    yield from lent(3, "openmpi", "the stand-in for jsrun is built on Open MPI's mpirun")


def bsub(place: Place, hosts: Hosts, words: list[str], status: int = 0) -> Done:
    """The words on the launch node, with what LSF tells of the job (IBM's list of environment variables)."""
    stack = installed_stack()
    programs = place.path / "bin"
    programs.mkdir(exist_ok=True)
    place.expected |= {"bin", "hostfile"}
    shutil.copy(STAND_IN, programs / "jsrun")
    (programs / "python").write_text(f'#!/bin/sh\nexec {stack.python} "$@"\n')
    (programs / "python").chmod(0o755)
    place.write("hostfile", "h0\n" + "h1\n" * 42 + "h2\n" * 42)
    environ = {**stack.settings(), "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "STAND_IN_MPIRUN":
               str(Path(stack.python).parent / "mpirun"), "PRTE_MCA_plm_ssh_agent": hosts.enter, "LSB_JOBID": "4711",
               "LSB_DJOB_HOSTFILE": str(place.path / "hostfile"), "LSB_DJOB_NUMPROC": "85", "LSB_SUB_HOST": "login1",
               "LSB_MCPU_HOSTS": "h0 1 h1 42 h2 42", "LSB_HOSTS": "h0" + " h1" * 42 + " h2" * 42}
    with hosts.start(place, words, env=environ) as running:
        done = running.wait(LIMIT)
    assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def test_the_script(place: Place, hosts: Hosts) -> None:
    command = "echo $(hostname) $CUDA_VISIBLE_DEVICES; env | grep -c ^JSM_ || true"
    place.write("w.yaml", {"jobs": {"a": {"command": command, "shell": True, "per": "node", "resources": {"gpus": 6}}}})
    place.expected.add("run")
    done = bsub(place, hosts, ["bash", str(ROOT / "jobscripts/lsf.sh"), "w.yaml", "run"])
    run = Run(place.path / "run", done)
    assert [job["stdout"].split() for job in run.jobs()] == [[f"h{n}", "0,1,2,3,4,5", "0"] for n in (1, 2)]
    assert (run.meta()["ranks"], run.meta()["nodes"]) == (2, ["h1", "h2"])
    assert {node["gpus"] for node in run.meta()["resources"]} == {"0-5"}


def test_what_doctor_says_of_the_default_binding(place: Place, hosts: Hosts) -> None:
    words = ["jsrun", "-n", "2", "-r", "1", "-a", "1", "-c", "2", "python", "-m", "mpiflux", "doctor"]
    done = bsub(place, hosts, words, status=1)
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (rows["launcher"], rows["ranks"]) == ("jsm", "2 on 2 node(s)"), done.stdout
    if len(os.sched_getaffinity(0)) > 1:
        assert "jsrun -c ALL_CPUS -b rs" in done.stderr, "packed:1 leaves each rank one CPU of its set"
