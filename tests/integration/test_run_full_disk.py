"""A small file system that is full: root only, in a mount namespace of its own, which goes with its last process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.mpi import clean_environment
from tests.support.runs import ROOT, Place


def _may_mount() -> bool:
    tried = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
    return os.getuid() == 0 and subprocess.run(tried, capture_output=True).returncode == 0


GO = """
mount -t tmpfs -o size=16m none small || exit 9
fill() {{ head -c 16m /dev/zero >small/ballast 2>/dev/null; truncate -s -1m small/ballast; }}
mkdir small/a small/b
fill
{run} --run-dir small/a; echo "first $?"
{python} -m mpiflux jobs small/a --filter completed --json >before.json || echo unreadable
head -c 16m /dev/zero >small/more 2>/dev/null
{run} --run-dir small/a --resume 2>full; echo "still full $?"
rm small/ballast small/more
{run} --run-dir small/a --resume 2>/dev/null; echo "resumed $?"
{python} -m mpiflux jobs small/a --all --json --with-output >after.json
rm -r small/a
fill
{run} --run-dir small/b 2>told & pid=$!
until grep -q "No more jobs" told || ! kill -0 $pid 2>/dev/null; do sleep 0.1; done
rm small/ballast
wait $pid; echo "in time $?"
cat told
"""


def test_a_full_disk_pauses_the_run_which_goes_on_or_is_resumed(place: Place) -> None:
    if not _may_mount():
        pytest.skip("only root can mount a small file system")
    place.write("flow.json", {"jobs": {"a": {"command": "sleep 0.1; echo {job.id} >>marks; head -c 200000 /dev/urandom",
                                             "shell": True, "parameters": {"i": {"range": 40}}}}})
    (place.path / "small").mkdir()
    place.expected |= {"small", "before.json", "after.json", "told", "full", "marks"}
    python = sys.executable
    place.write("go.sh", GO.format(python=python, run=f"{python} -m mpiflux run flow.json --cores-per-node 4 "
                                                      "--progress none"))
    done = subprocess.run(["unshare", "--mount", "sh", "go.sh"], cwd=place.path, capture_output=True, text=True,
                          env=clean_environment({"PYTHONPATH": str(ROOT)}), timeout=120)
    told = done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(("first", "still", "resumed", "in time"))] == [
        "first 3", "still full 3", "resumed 0", "in time 0"], told
    full = (place.path / "full").read_text()
    assert "Traceback" not in full and "small/a" in full and "full" in full and len(full.splitlines()) < 3, full
    assert "Traceback" not in told and "unreadable" not in told
    lines = done.stderr.splitlines()
    assert sum("make room there" in line and "No more jobs are started" in line for line in lines) == 1
    assert any("go on with run --resume" in line for line in lines)
    assert "can be written again, and jobs are started again" in done.stdout
    before, after = (json.loads((place.path / name).read_text()) for name in ("before.json", "after.json"))
    assert len(before) < 40, "more jobs were started although they could not be stored"
    assert [(job["result"], len(job["stdout"].encode(errors="surrogateescape"))) for job in after] == [
        ("COMPLETED", 200_000)] * 40
    again = {job["id"]: job for job in after}
    assert all(again[job["id"]]["t_start"] == job["t_start"] for job in before), "a job that was committed ran again"
