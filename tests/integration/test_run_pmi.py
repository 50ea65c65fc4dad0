"""What a run says of jobs whose tasks never spoke to the PMI server that they were given, and of odd codes."""

from __future__ import annotations

import sys

from mpiflux.store.reader import open_run
from tests.support.runs import Place

SPEAKS = """
import os, sys
fd = int(os.environ["PMI_FD"])
if os.environ["PMI_RANK"] == "1":
    os.write(fd, b"cmd=init pmi_version=1 pmi_subversion=1\\n")
    os.read(fd, 1000)
    if len(sys.argv) > 1:
        os.write(fd, f"cmd=abort exitcode={sys.argv[1]}\\n".encode())
        os.read(fd, 1000)
"""


def test_a_program_that_does_not_speak_pmi_1_is_told_of(place: Place) -> None:
    """An Open MPI program as a job of ``mpi: pmi1`` is as many programs of one rank, and completes."""
    place.write("speaks.py", SPEAKS)
    two = {"tasks": 2}
    flow = {"jobs": {
        "deaf": {"command": "true", "parameters": {"i": {"range": 3}}, "resources": two, "mpi": "pmi1"},
        "one": {"command": "true", "mpi": "pmi1"}, "none": {"command": "true", "resources": two},
        "speaks": {"command": f"{sys.executable} speaks.py", "resources": two, "mpi": "pmi1"},
        "fails": {"command": "false", "resources": two, "mpi": "pmi1"},
        "aborts": {"command": f"{sys.executable} speaks.py {{code}}", "parameters": {"code": [-1, 256, 70000]},
                   "resources": two, "mpi": "pmi1"}}}
    run = place.run(flow, "--cores-per-node", "4", status=1)
    assert run.done is not None
    notes = [line for line in run.done.stderr.splitlines() if "asked for PMI-1" in line]
    assert len(notes) == 1 and "deaf[" in notes[0] and "none of its 2 tasks" in notes[0] and "Open MPI" in notes[0]
    for job in run.jobs():
        assert ("asked for PMI-1" in job["reason"]) is (job["name"] == "deaf"), job
    with open_run(run.directory) as reader:
        assert [event.context["severity"] for event in reader.eventlog(1) if event.name == "exception"] == [4]
    assert [job["returncode"] for job in run.jobs() if job["name"] == "aborts"] == [255, 1, 112]
