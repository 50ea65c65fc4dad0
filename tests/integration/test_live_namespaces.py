"""Keys of each job's own, namespaces, and values that are too large."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mpiflux
from mpiflux.client.errors import NoKey, Rejected
from mpiflux.model import requests as r
from tests.integration.test_live import RANKS, instance
from tests.support.runs import Place, place

__all__ = ["place"]

WRITER = """
import mpiflux
with mpiflux.connect() as flux:
    flux.job().kvs.put("step", 7)
    flux.job().kvs.put("deep.er", b"x")
    flux.kvs.put("seen", 1)      # by MPIFLUX_KVS_NAMESPACE its own too
"""


def command(directory: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "mpiflux", "kvs", *words, "--run-dir", str(directory)],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("ranks", RANKS)
def test_a_job_has_keys_of_its_own(place: Place, ranks: int) -> None:
    with instance(place, ranks=ranks) as (directory, _), mpiflux.connect(directory) as flux:
        jobs = flux.submit_many([sys.executable, "-c", WRITER, "{i}"], params={"i": [0, 1]}, name="w",
                                env={"MPIFLUX_KVS_NAMESPACE": "job.{job.id}.guest"})
        with flux.kvs.watch("job.w.1.guest.step") as changes:
            assert changes.get(30)[:2] == (f"job.{jobs[1].id}.guest.step", 7)
        assert jobs.wait(30).ok
        for index, job in enumerate(jobs):
            assert job.kvs.ls(recursive=True) == ["deep.er", "seen", "step"]
            assert flux.kvs.get(f"job.w.{index}.guest.seen") == 1 and job.kvs.get("deep.er") == b"x"
            assert flux.kvs.ls(f"job.{job.id}")[-1] == f"job.{job.id}.guest."
        with pytest.raises(NoKey):
            flux.kvs.get("seen")
        flux.kvs.rename("job.w.0.guest.step", "moved")
        assert flux.kvs.get("moved") == 7
        for wrong in ("job.1.guest", "job.1.other.x", "job.1.stdout"):
            with pytest.raises(Rejected, match="cannot be written"):
                flux.kvs.put(wrong, 1)
        with pytest.raises(mpiflux.NoJob):
            flux.kvs.put("job.99.guest.x", 1)
        with pytest.raises(mpiflux.NoJob, match="is no job"):
            flux.job()
        mine = flux.kvs.namespace("model.a")
        mine.put("x", 1)
        assert flux.kvs.get("model.a.x") == 1 and mine.ls() == ["x"]
        assert mine.namespace("b").namespace("").get("moved") == 7
        command(directory, "put", "-N", "model.a", "y", "2")
        assert mine.get("y") == 2
        flux.sync()
    assert command(directory, "ls", "-N", "job.w.1.guest").split() == ["deep.", "seen", "step"]
    assert json.loads(command(directory, "get", "job.2.guest.step")) == 7
    assert "job.2.guest." in command(directory, "ls", "job.w.1").replace("w.1", "2")


def test_a_value_that_is_too_large_is_refused_by_a_sentence(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as flux:
        flux.kvs.put("a", 1)
        for value in (bytes(100_000_000), "x" * 100_000_000):
            with pytest.raises(ValueError, match="at most 33554432 are kept under a key"):
                flux.kvs.put("a", value)
        # another client may not check: the instance does
        import msgspec

        from mpiflux.client.session import Plan
        from mpiflux.store.kvs import put

        ops = msgspec.msgpack.encode((put("a", bytes(r.MAX_VALUE + 1)),))
        with pytest.raises(Rejected, match="at most 33554432 are kept under a key"):
            flux._do(Plan(r.Txn(ops), int))
        with pytest.raises(ValueError, match="at most 67108864 travel at once"):
            flux.kvs.commit([put(f"k{i}", bytes(30 << 20)) for i in range(3)])
        assert flux.kvs.get("a") == 1
