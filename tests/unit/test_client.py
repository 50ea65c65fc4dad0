"""``mpiflux.connect`` on a run directory."""

from __future__ import annotations

import pytest

import mpiflux
from tests.support import rundir


@pytest.fixture(autouse=True)
def _no_run(monkeypatch):
    for name in ("MPIFLUX_RUN_DIR", "MPIFLUX_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return rundir.finished(tmp_path_factory.mktemp("run") / "a run")


def test_jobs(done):
    with mpiflux.connect(done) as flux:
        jobs = list(flux.jobs())
        assert [job.id for job in jobs] == list(range(1, 11)) and flux.state == "finished"
        first, second, signalled, late = jobs[0], jobs[1], jobs[2], jobs[7]
        assert (first.name, first.index, first.params, first.result, first.returncode) == (
            "sim", 0, {"x": 0.0, "mode": "fast"}, "COMPLETED", 0)
        assert first.stdout.encode("utf-8", "surrogateescape") == rundir.STDOUT and first.stderr == ""
        assert second.stderr.encode() == rundir.STDERR
        assert signalled.returncode == -11
        assert (late.state, late.result, late.returncode, late.t_start) == ("DEPEND", None, None, None)
        assert [event.name for event in second.events()][:2] == ["submit", "depend"]


def test_jobs_are_chosen(done):
    with mpiflux.connect(str(done)) as flux:
        assert [job.id for job in flux.jobs(name="sim", results=["failed", "TIMEOUT"])] == [2, 3, 4]
        assert [job.id for job in flux.jobs(states=["DEPEND"])] == [8, 9, 10]
        assert next(flux.jobs("sim", with_output=True)) == flux.job("sim[0]") == flux.job(1)
        for call in (lambda: flux.jobs("smi"), lambda: flux.job(99), lambda: flux.job("sim")):
            with pytest.raises(mpiflux.NoJob):
                call()
        with pytest.raises(ValueError, match="COMPLETED"):
            flux.jobs(results=["done"])


def test_with_output_still_works_after_the_end(done):
    with mpiflux.connect(done) as flux:
        jobs = list(flux.jobs("sim", with_output=True))
    assert jobs[0].stdout.startswith("x is 0.0") and jobs[1].stderr.endswith("2\n\n")


def test_kvs(done):
    with mpiflux.connect(done) as flux:
        assert flux.kvs.get("a.b") == {"n": [1, 2]} and flux.kvs.get("raw") == b"\x00\xff"
        assert flux.kvs.ls() == ["a.", "raw", "job."] and flux.kvs.get("job.2.stderr") == rundir.STDERR
        for key in ("nope", "a..b"):
            with pytest.raises(KeyError):
                flux.kvs.get(key)


def test_a_live_run_is_seen_as_it_is_now(tmp_path):
    with rundir.live(tmp_path / "live") as journal, mpiflux.connect(tmp_path / "live") as flux:
        assert flux.job(8).state == "RUN" and flux.job(8).stdout == "begin\n"
        assert [job.id for job in flux.jobs(states=["RUN"])] == [8]
        rundir.end_job_8(journal)
        assert flux.job(8).returncode == 5 and flux.job(8).stdout == "begin\nmiddle\nend\n"
        assert [job.id for job in flux.jobs(states=["RUN"])] == []


def test_where_a_job_finds_its_run(done, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("MPIFLUX_RUN_DIR", str(done))
        with mpiflux.connect() as flux:
            assert flux.job(1).id == 1
    monkeypatch.setenv("MPIFLUX_RUN_DIR", "/nowhere")
    for uri in (f"rundir://{done}", f"rundir://{str(done).replace(' ', '%20')}"):
        monkeypatch.setenv("MPIFLUX_URI", uri)
        with mpiflux.connect() as flux:
            assert flux.job(1).id == 1


@pytest.mark.parametrize(("target", "said"), [
    (None, "no mpiflux job"), ("/nowhere/at/all", "no such directory"), ("local:///x", "no instance answers"),
    ("tcp://x", "local:///")])
def test_no_run(target, said):
    with pytest.raises(mpiflux.NotConnected, match=said):
        mpiflux.connect(target)


def test_what_needs_the_live_instance_says_so(done):
    with mpiflux.connect(done) as flux:
        for call in (lambda: flux.submit(["true"]), lambda: flux.publish("t", 1), lambda: flux.subscribe("t"),
                     lambda: flux.serve("m", print), lambda: flux.call("m"), lambda: flux.queue("q"),
                     lambda: flux.kvs.put("a", 1), lambda: flux.kvs.watch("a"), lambda: flux.kvs.rm("a")):
            with pytest.raises(mpiflux.NotConnected, match="live instance"):
                call()


def test_all_that_a_live_instance_has_is_there_or_says_that_it_needs_one(done):
    from mpiflux.client.jobs import Job
    from mpiflux.client.keys import Kvs
    from mpiflux.client.live import Flux

    with mpiflux.connect(done) as flux:
        for mine, live in ((flux, Flux), (flux.kvs, Kvs), (flux.job(1), Job)):
            for name in (name for name in vars(live) if not name.startswith("_")):
                try:
                    getattr(mine, name)
                except mpiflux.NotConnected as error:
                    assert "live instance" in str(error)
            with pytest.raises(AttributeError, match="nonsense"):
                _ = mine.nonsense


def test_names():
    assert all(hasattr(mpiflux, name) for name in mpiflux.__all__) and set(mpiflux.__all__) <= set(dir(mpiflux))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mpiflux.nonsense
