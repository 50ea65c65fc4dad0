"""``--hosts`` and ``--rsh``: ranks on other hosts with no MPI launcher, by one remote shell each."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mpi.test_hosts import PING_PONG, rig
from tests.support.hosts import Hosts
from tests.support.mpi import clean_environment, installed_stack
from tests.support.runs import ROOT, Place, until

__all__ = ["rig"]
pytestmark = pytest.mark.mpi

RSH = """#!/bin/sh
# a host that is this one under another name; its login script talks
host=$1; shift
test $host = lost && exec sleep 1000
echo "welcome to $host"
cd / && exec sh -c "$*"
"""


@pytest.fixture
def rsh(place: Place) -> str:
    if installed_stack().name != "mpich":
        pytest.skip(f"{installed_stack().name} does not speak PMI-1, by which these ranks start")
    path = place.write("rsh", RSH)
    path.chmod(0o755)
    return str(path)


def test_an_instance_on_several_hosts(place: Place, rig: Hosts) -> None:
    """With the first rank on this host; a parallel job from host to host in it."""
    place.write("ping.py", PING_PONG)
    flow = {"jobs": {
        "a": {"command": "echo $(hostname) $MINE", "shell": True, "parameters": {"i": {"range": 12}},
              "resources": {"cores": 1}},
        "ping": {"command": "python ping.py", "mpi": "pmi1", "resources": {"nodes": 2, "tasks": 2}}},
        "env": {"MINE": "x y"}}
    run = rig.run(place, flow, "--cores-per-node", "2", launch=["--hosts", "h[0-3]", "--rsh", rig.enter])
    assert run.results() == {"COMPLETED": 13} and run.meta()["ranks"] == 4
    jobs = run.jobs()
    assert all(job["stdout"] == f"{job['nodes'][0]} x y\n" for job in jobs[:12])
    assert {job["nodes"][0] for job in jobs[:12]} == set(rig.names)
    rows = sorted(line.split() for line in jobs[12]["stdout"].splitlines())
    assert [row[:2] for row in rows] == [["0", jobs[12]["nodes"][0]], ["1", jobs[12]["nodes"][1]]]


def test_several_ranks_on_a_host_that_is_not_this_one(place: Place, rig: Hosts) -> None:
    flow = {"jobs": {"a": {"command": "hostname", "parameters": {"i": {"range": 8}}}}}
    run = rig.run(place, flow, "--cores-per-node", "2", launch=["--hosts", "h1:2,h2:1", "--rsh", rig.enter])
    assert run.results() == {"COMPLETED": 8} and run.meta()["ranks"] == 3
    assert all(job["stdout"].split() == job["nodes"] for job in run.jobs())
    assert {job["nodes"][0] for job in run.jobs()} == {"h1", "h2"}


def test_without_root(place: Place, rsh: str) -> None:
    """What a remote shell or a login script prints does not come between."""
    run = place.run({"jobs": {"a": {"command": "echo {i}", "parameters": {"i": {"range": 6}}}}},
                    "--hosts", "localhost,b", "--rsh", rsh)
    assert run.results() == {"COMPLETED": 6} and run.meta()["ranks"] == 2
    assert run.done is not None and "welcome to b" in run.done.stderr and "welcome" not in run.done.stdout


def test_an_error_in_the_workflow_ends_the_ranks_on_all_hosts(place: Place, rsh: str) -> None:
    """By a word of rank 0, which leaves at once; only rank 0 has anything to say."""
    place.write("bad.yaml", {"jobs": {"a": {"comand": "x"}}})
    done = place.call("run", "bad.yaml", "--hosts", "b,c:2", "--rsh", rsh, status=2)
    said = [line for line in done.stderr.splitlines() if "welcome" not in line]
    assert len(said) == 2 and all("bad.yaml:" in line for line in said), done.stderr


def test_an_interrupt_reaches_every_host_and_leaves_nothing(place: Place, rsh: str) -> None:
    running, run = place.begin({"jobs": {"a": {"command": "sleep 1000", "parameters": {"i": {"range": 2}}}}},
                               "--hosts", "b,c", "--rsh", rsh, "--cores-per-node", "2")
    with running:
        until(lambda: (run.directory / "run.db").exists() and run.results().get("RUN"), "a job runs")
        running.signal(signal.SIGINT)
        done = running.wait()
        assert done.returncode == 128 + signal.SIGINT, done.stderr
        until(lambda: not [p for p in running.members() if not p.zombie], "everything is gone")


def test_an_interrupt_while_a_host_does_not_answer(place: Place, rsh: str) -> None:
    running, _ = place.begin({"jobs": {"a": {"command": "touch started"}}}, "--hosts", "localhost,lost", "--rsh", rsh)
    with running:
        until(lambda: any(p.comm == "sleep" for p in running.members()), "the remote shell runs")
        running.signal(signal.SIGINT)
        assert running.wait().returncode not in (0, 1)
        until(lambda: not [p for p in running.members() if not p.zombie], "everything is gone")


def test_a_killed_launcher_takes_the_ranks_on_other_hosts_along(place: Place, rsh: str) -> None:
    running, run = place.begin({"jobs": {"a": {"command": "sleep 1000"}}}, "--hosts", "localhost,c", "--rsh", rsh)
    with running:
        until(lambda: (run.directory / "run.db").exists() and run.results().get("RUN"), "the job runs")
        running.process.kill()
        running.wait()
        until(lambda: not [p for p in running.members() if not p.zombie], "everything is gone")


@pytest.mark.parametrize(("script", "returncode"), [("exit 7", 7), ("kill -9 $$", -9), ("kill -9 $PPID", 255)])
def test_the_near_end_ends_as_the_rank(place: Place, rsh: str, script: str, returncode: int) -> None:
    """Or, when the far end has gone, as ssh does."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        task = json.dumps({"host": "b", "rsh": [rsh], "segments": []})
        words = ["sh", "-c", f"echo out; echo err >&2; {script}"]
        done = subprocess.run([sys.executable, "-m", "mpiflux.node.near", task, *words],
                              env=clean_environment({"PYTHONPATH": str(ROOT), "PMI_FD": str(theirs.fileno())}),
                              pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == returncode
    if returncode != 255:
        assert (done.stdout, done.stderr) == ("out\n", "welcome to b\nerr\n")
    else:
        assert "the connection to host b is lost" in done.stderr


@pytest.mark.parametrize(("options", "told"), [
    (["--hosts", "localhost,b", "--rsh", "false"], "cannot start a rank on host b: false b … ended with status 1"),
    (["--hosts", "b", "--rsh", "/no/such"], "/no/such: No such file"),
    (["--hosts", "b", "--rsh", "echo"], "ended with status 0"),
    (["--hosts", "a:0"], "a:0"), (["--rsh", "ssh"], "none are named"),
])
def test_a_host_that_cannot_be_reached_is_told(place: Place, rsh: str, options: list[str], told: str) -> None:
    place.write("flow.yaml", "jobs: {a: {command: touch started}}\n")
    done = place.call("run", "flow.yaml", "--run-dir", "never", *options, status=None)
    assert done.returncode in (2, 3) and told in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_directory_that_the_other_host_has_not(place: Place, rsh: str, tmp_path: Path) -> None:
    place.write("flow.yaml", "jobs: {a: {command: touch started}}\n")
    path = Path(place.write("rsh-elsewhere", RSH.replace("cd /", f"cd / && mv {place.path} {tmp_path}/moved")))
    path.chmod(0o755)
    other = tmp_path / "rsh-elsewhere"
    path.rename(other)
    place.expected.discard("rsh-elsewhere")
    done = place.call("run", "flow.yaml", "--hosts", "b", "--rsh", str(other), status=3)
    (tmp_path / "moved").rename(place.path)
    assert "start in a directory that all hosts have" in done.stderr
