"""A live instance and the programs that talk to it, on one rank and on four."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mpiflux
from mpiflux.model import requests as r
from mpiflux.model.frames import pack
from tests.support.mpi import MpiRun
from tests.support.runs import Place, place, until

__all__ = ["place"]

PY = sys.executable
RANKS = [0, pytest.param(4, marks=pytest.mark.mpi)]


def is_open(directory: Path) -> bool:
    """Whether the instance of a run directory takes clients."""
    facts = directory / "instance.json"
    doors = json.loads(facts.read_text()).get("doors", ()) if facts.exists() else ()
    return any(os.path.exists(door["path"]) for door in doors)


@contextmanager
def instance(place: Place, *options: str, ranks: int = 0) -> Iterator[tuple[Path, MpiRun]]:
    """An instance that waits for clients until the block is left; its run directory."""
    name = place.new()
    place.expected.add("go-on")
    fifo = place.path / "go-on"
    os.mkfifo(fifo)
    with place.start("start", "--run-dir", name, *options, "--", "cat", "go-on", ranks=ranks) as running:
        until(lambda: is_open(place.path / name), "a door", 30)
        try:
            yield place.path / name, running
            with open(fifo, "w"):
                pass
            done = running.wait(30)
            assert done.returncode == 0, done.stderr
        finally:
            if running.process.poll() is None:
                running.kill()


@pytest.mark.parametrize("ranks", RANKS)
def test_a_program_steers(place: Place, ranks: int) -> None:
    place.write("steer.py", """
import sys, mpiflux
with mpiflux.connect() as flux:
    job = flux.submit(["sh", "-c", "echo $0; exit 3", "{x}"], name="one")
    names = [event.name for event in job.events()]
    assert names == ["submit", "depend", "alloc", "start", "output", "finish", "release", "clean"], names
    result = job.result(timeout=30)
    assert (result.returncode, result.stdout, result.result) == (3, "{x}\\n", "FAILED"), result
    jobs = flux.submit_many([["echo", str(i)] for i in range(200)], name="many")
    assert jobs.wait(60) == (200, 0, 0, 0)
    assert [result.stdout for result in jobs.results()] == [f"{i}\\n" for i in range(200)]
    assert {job.id for job in jobs.as_completed()} == set(jobs.ids)
sys.exit(7)
""")
    name = place.new()
    place.call("start", "--run-dir", name, "--cores-per-node", "4", "--", PY, "steer.py", ranks=ranks, status=7)
    with mpiflux.connect(place.path / name) as flux:
        jobs = list(flux.jobs(with_output=True))
    assert len(jobs) == 201
    assert [job.stdout for job in jobs[1:]] == [f"{i}\n" for i in range(200)]


def test_a_name_that_is_submitted_again_means_all_of_its_jobs(place: Place) -> None:
    with instance(place) as (path, _), mpiflux.connect(path) as flux:
        told = flux.events("via", names=["submit"])
        first = flux.submit_many([["echo", "0"], ["echo", "1"]], name="via")
        other = flux.submit(["true"], name="other")
        more = [flux.submit(["echo", str(i)], name="via") for i in (2, 3)]
        ids = [*first.ids, *(job.id for job in more)]
        assert list(flux.group("via").ids) == ids and [result.stdout for result in flux.group("via").results()] == [
            "0\n", "1\n", "2\n", "3\n"]
        assert flux.group("other").ids == range(other.id, other.id + 1) and flux.job("via.3") == more[1]
        assert flux.kvs.get("job.via.2.stdout") == b"2\n" and flux.kvs.ls("job.via") == [
            f"job.via.{i}." for i in range(4)]
        assert [told.get(30).job for _ in ids] == ids
        for wrong in ("via.4", "nobody[0]"):
            with pytest.raises(mpiflux.NoJob):
                flux.events(wrong)
        for wrong in ("via", "via.4"):
            with pytest.raises(mpiflux.NoJob, match="4 jobs"):
                flux.job(wrong)
        assert [record.id for record in flux.jobs("via")] == ids
        for _ in range(2):
            flux.submit(["true"], name="held", hold=True)
        assert "2 jobs have" in place.call("job", "urgency", "held", "20", "--run-dir", str(path)).stdout
    listed = place.call("jobs", str(path), "--filter", "via", "--json")
    assert [record["id"] for record in json.loads(listed.stdout)] == ids


def test_a_forked_process_connects_again_and_leaves_its_parents_connection_alone(place: Place) -> None:
    place.write("fork.py", """
import os, signal, mpiflux
flux = mpiflux.connect()
flux.kvs.put("a", 1)
events, pool = flux.events(), mpiflux.Executor()
child = os.fork()
if child == 0:
    signal.alarm(30)
    for ask in (lambda: flux.kvs.get("a"), lambda: flux.subscribe("t"), events.get, lambda: next(events),
                lambda: pool.submit(["true"])):
        try:
            ask()
        except (mpiflux.NotConnected, RuntimeError) as error:
            assert "forked" in str(error), error
        else:
            os._exit(3)
    events.close(), pool.shutdown(), flux.close()
    with mpiflux.connect() as flux:
        os._exit(flux.kvs.get("a"))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
with flux, pool:
    assert flux.kvs.get("a") == 1 and pool.submit(["true"]).result(30).ok
    assert [events.get(30).name for _ in range(3)] == ["submit", "depend", "alloc"]
""")
    place.call("start", "--run-dir", place.new(), "--", PY, "fork.py")


@pytest.mark.parametrize("ranks", RANKS)
def test_a_job_submits_more(place: Place, ranks: int) -> None:
    place.write("more.py", """
import mpiflux
with mpiflux.connect() as flux:
    jobs = flux.submit_many(["echo", "{rho}"], params={"rho": [0.5, 1.5, 2.5]}, name="more", after=[1, "other"])
    assert flux.submit(["echo", "last"], after=jobs).id == 1 + 2 + 3 + 1
""")
    run = place.run({"jobs": {"steer": {"command": [PY, "more.py"]}, "other": {"command": "true", "parameters": {
        "i": {"range": 2}}}}}, "--cores-per-node", "4", ranks=ranks)
    assert [job["stdout"] for job in run.jobs() if job["name"] == "more"] == ["0.5\n", "1.5\n", "2.5\n"]
    last = run.job("echo")
    assert last["stdout"] == "last\n"
    assert last["t_start"] >= max(job["t_finish"] for job in run.jobs() if job["name"] == "more")


def test_dependencies_on_jobs_that_have_ended(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as flux:
        good, bad = flux.submit(["true"]), flux.submit(["false"])
        assert flux.wait([good, bad], 30) == (1, 1, 0, 0)
        kinds = {"ok": {"afterok": good}, "any": {"any": [good, bad]}, "not ok": {"afternotok": bad}}
        for name, after in kinds.items():
            assert flux.submit(["echo", name], after=after).result(30).stdout == f"{name}\n"
        refused = flux.submit(["true"], after=[good, bad]).result(30)
        assert refused.result == "CANCELED" and str(bad.id) in refused.reason
        assert flux.submit(["true"], after={"not_ok": good}).result(30).result == "CANCELED"
        with pytest.raises(mpiflux.NoJob, match="99"):
            flux.submit(["true"], after=99)
        chain = flux.submit(["sleep", "0.1"])
        for _ in range(5):
            chain = flux.submit(["true"], after=chain)
        assert chain.result(30).ok


def test_cancel_reaches_jobs_wherever_they_are(place: Place) -> None:
    with instance(place, "--cores-per-node", "2") as (directory, _), mpiflux.connect(directory) as flux:
        jobs = flux.submit_many(["sleep", "{s}"], params={"s": [100] * 50}, name="sleepers")
        held = flux.submit(["true"], after=jobs)
        kept = flux.submit(["true"], hold=True)
        for event in jobs.events("start"):
            first = event.job
            break
        assert flux.cancel(first, reason="no need") == 1
        result = flux.job(first).result(30)
        assert (result.result, result.returncode, result.reason) == ("CANCELED", -15, "no need")
        assert flux.cancel("sleepers", states=["sched", "depend"]) >= 40
        assert flux.cancel("sleepers") >= 1
        assert flux.wait(jobs, 30) == (0, 0, 50, 0)
        assert held.result(30).result == "CANCELED"
        assert kept.record().state == "DEPEND" and kept.cancel() and not kept.cancel()
        assert flux.wait(None, 30).canceled == 52
        assert flux.cancel() == 0


def test_hold_and_release(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as flux:
        job = flux.submit(["echo", "at last"], hold=True)
        assert flux.submit(["true"]).result(30).ok
        assert job.record().state == "DEPEND"
        job.release()
        assert [event.name for event in job.events("submit", "depend", "clean")] == ["submit", "depend", "clean"]
        assert job.result(30).stdout == "at last\n"


@pytest.mark.parametrize("ranks", RANKS)
def test_events_come_once_and_in_order_from_any_point(place: Place, ranks: int) -> None:
    with instance(place, "--cores-per-node", "4", ranks=ranks) as (directory, _), mpiflux.connect(directory) as flux:
        live = flux.events()
        jobs = flux.submit_many(["sh", "-c", "sleep 0.0{n}"], params={"n": range(30)}, retries=1)
        flux.submit(["false"], retries=1, after=jobs).result(30)
        flux.submit(["true"]).result(30)
        told = []
        while (event := live.get(30)).job < 32 or event.name != "clean":
            told.append(event)
        told.append(event)
        again = [next(flux.events()) for _ in range(1)]
        assert again == told[:1]
        everything = flux.events(finite=True)
        assert list(everything) == told
        assert [event.number for event in told] == sorted({event.number for event in told})
        for cut in (1, len(told) // 2, len(told) - 1):
            assert list(flux.events(since=told[cut].number, finite=True)) == told[cut:]
        for job in range(1, 33):
            mine = [event for event in told if event.job == job]
            assert list(flux.job(job).events()) == mine
            logged = [event.name for event in flux.job(job).eventlog()]
            assert [event.name for event in mine] == logged
        assert [event.job for event in flux.events(names=["retry"], finite=True)] == [31]


def test_callbacks_hear_each_change_of_state(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[int, str]] = []
    changes = ["start", "finish", "clean"]

    def note(event: mpiflux.JobEvent) -> None:
        heard.append((event.job, event.name))
        if event.name == "start":
            raise ValueError("of the callback")
        if event.name == "clean":
            assert flux.job(event.job).result(30).ok

    async def same(directory: Path) -> list[tuple[int, str]]:
        again: list[tuple[int, str]] = []

        async def note(event: mpiflux.JobEvent) -> None:
            again.append((event.job, event.name))

        async with await mpiflux.aio.connect(directory) as other, await other.on_event(
                note, "some", names=changes, finite=True) as callbacks:
            await callbacks.join()
        return again

    with instance(place) as (directory, _), mpiflux.connect(directory) as flux:
        some = flux.submit_many([["sleep", "0.1"], ["sleep", "0.2"]], name="some")
        with flux.on_event(note, some, names=changes, finite=True) as callbacks:
            callbacks.join(30)
        assert sorted(heard) == sorted((job, name) for job in some.ids for name in changes)
        assert caplog.text.count("ValueError: of the callback") == 2
        assert asyncio.run(same(directory)) == heard
        with flux.on_event(note, "some") as callbacks, pytest.raises(TimeoutError):
            callbacks.join(0.01)
        callbacks.join(30)


def test_the_output_event_is_the_same_live_and_in_the_run_directory(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as flux:
        job = flux.submit(["sh", "-c", "echo one; echo two >&2; sleep 0.8; echo three"])
        job.result(30)
        told = [event.context for event in job.events("output")]
        assert told == [event.context for event in job.eventlog() if event.name == "output"]
        assert told == [{"stdout": 10, "stderr": 4}]


def test_a_slow_reader_of_events_misses_none(place: Place) -> None:
    with instance(place, "--cores-per-node", "4") as (directory, _), mpiflux.connect(directory) as flux:
        jobs = flux.submit_many(["true", "{n}"], params={"n": range(4000)}, hold=True)
        events = jobs.events()
        flux.release(jobs)
        assert jobs.wait(60).ok
        count: dict[str, int] = {}
        for event in events:
            count[event.name] = count.get(event.name, 0) + 1
        assert count == dict.fromkeys(("submit", "depend", "alloc", "start", "finish", "release", "clean"), 4000)


@pytest.mark.parametrize("ranks", RANKS)
def test_keys(place: Place, ranks: int) -> None:
    with instance(place, "--cores-per-node", "2", ranks=ranks) as (directory, _), mpiflux.connect(directory) as flux, \
            mpiflux.connect(directory) as other:
        watch = other.kvs.watch("a")
        values: list[Any] = [1, "text", None, {"x": [1.5, True]}, b"\0\xff", -7]
        for value in values:
            flux.kvs.put("a.b", value)
        changes = [watch.get(30) for _ in values]
        assert [change.value for change in changes] == values
        assert [change.version for change in changes] == list(range(1, 7))
        flux.kvs.rm("a.b")
        assert watch.get(30) == ("a.b", None, 7, True)
        with pytest.raises(KeyError, match=r"a\.b"):
            other.kvs.get("a.b")
        flux.kvs.put("c", 1)
        value, version = other.kvs.get_versioned("c")
        other.kvs.put("c", value + 1, version=version)
        with pytest.raises(mpiflux.Conflict):
            flux.kvs.put("c", 100, version=version)
        flux.kvs.rename("c", "d.e")
        assert flux.kvs.ls() == ["d.", "job."] and other.kvs.get("d.e") == 2
        job = flux.submit(["echo", "out"])
        job.result(30)
        assert flux.kvs.get(f"job.{job.id}.stdout") == b"out\n"
        assert flux.kvs.get(f"job.{job.id}.result")["returncode"] == 0
        flux.sync()
        with pytest.raises(mpiflux.Rejected, match="directory"):
            flux.kvs.put("d", 1)
    with mpiflux.connect(directory) as over:
        assert over.kvs.get("d.e") == 2


def test_what_is_wrong_is_said_and_harms_nothing(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as flux:
        for wrong, said in [({"cores": 1000}, "1000 cores"), ({"urgency": 99}, "0 to 31"),
                            ({"env": {"A": "\0"}}, "zero"), ({"after": {"soon": 1}}, "soon"),
                            ({"after": "nobody"}, "nobody"),
                            ({"params": {"a": [1], "b": [1, 2]}}, "zipped"), ({"output": "{nope}"}, "nope"),
                            ({"name": "12"}, "job of that number"), ({"name": "#0"}, "job of that number")]:
            with pytest.raises(mpiflux.FluxError, match=said):
                flux.submit(["true"], **wrong)
        with pytest.raises(TypeError, match="list of arguments"):
            flux.submit("true")
        with pytest.raises(TypeError, match="'core'"):
            flux.submit(["true"], core=1)
        with pytest.raises(mpiflux.NoJob):
            flux.job(1)
        with pytest.raises(ValueError, match="at most"):
            flux.kvs.put("big", bytes(r.MAX_VALUE))
        with pytest.raises(TimeoutError):
            flux.submit(["sleep", "60"]).result(0.05)
        assert flux.status()["jobs"]["total"] == 1


def _raw(directory: Path) -> socket.socket:
    path = json.loads((directory / "instance.json").read_text())["doors"][0]["path"]
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(path)
    return sock


HELLO = pack(r.encode(r.Hello(r.VERSION)))


@pytest.mark.parametrize("ranks", RANKS)
def test_garbage_ends_its_client_alone(place: Place, ranks: int) -> None:
    garbage = {
        "garbage": b"GET / HTTP/1.1\r\n\r\n", "a huge length": b"\xff\xff\xff\x7f", "another version":
        pack(b"\x82\xa4type\xa5hello\xa7version\xcd\x03\xe7"), "not msgpack": pack(b"\xc1"),
        "nested": pack(b"\x91" * 3000), "a call before hello": pack(r.encode(r.Call(1, r.Status()))),
        "no call": HELLO + pack(b"\x93\x01\x02\x03"), "an unknown call": HELLO + pack(b"\x92\x01\x81\xa4type\xa3foo"),
        "a huge length later": HELLO + b"\xff\xff\xff\xff", "deep later": HELLO + pack(b"\x92\x01" + b"\x91" * 100000)}
    with instance(place, ranks=ranks) as (directory, running), mpiflux.connect(directory) as flux:
        half = _raw(directory)
        half.sendall(HELLO + pack(bytes(100))[:50])
        for what, data in garbage.items():
            with _raw(directory) as sock:
                sock.sendall(data)
                said = b""
                while piece := sock.recv(1 << 16):
                    said += piece
                assert b"goodbye" in said, what
                assert (b"999" in said) == (what == "another version")
        assert flux.submit(["echo", "well"]).result(30).stdout == "well\n"
        half.close()
        until(lambda: flux.status()["clients"] == 1, "the others are forgotten", 20)
        assert running.process.poll() is None


def test_a_client_that_is_killed_leaves_nothing(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as flux:
        sock = _raw(directory)
        every = r.Select(every=True)
        ops = (r.Watch(10, "x"), r.Events(11, every), r.Get("never", True), r.Drain(every),
               r.Fence("f", 2), r.Submit((r.NewGroup(command=("echo", "kept")),)))
        sock.sendall(HELLO + b"".join(pack(r.encode(r.Call(n, op))) for n, op in enumerate(ops, 1)))
        until(lambda: flux.status()["jobs"]["total"] == 1, "its job is there", 20)
        sock.close()
        until(lambda: flux.status()["clients"] == 1, "it is forgotten", 20)
        with pytest.raises(TimeoutError):
            flux.kvs.fence("f", 2, timeout=0.2)
        assert flux.job(1).result(30).stdout == "kept\n"


def test_whoever_keeps_the_instance_open(place: Place) -> None:
    running, run = place.begin({"jobs": {"a": {"command": "sleep 1"}}})
    with running:
        until(lambda: is_open(run.directory), "a door")
        with mpiflux.connect(run.directory) as other:
            with mpiflux.connect(run.directory, keep=True) as flux:
                assert flux.wait(None, 30) == (1, 0, 0, 0)
                assert flux.submit(["echo", "more"]).result(30).stdout == "more\n"
                pending = other.kvs.watch("x")
            assert running.wait(30).returncode == 0
            assert pending.get(10) is None
            with pytest.raises(mpiflux.InstanceEnded):
                other.status()
    assert run.results() == {"COMPLETED": 2}


def test_a_run_ends_while_clients_look_on(place: Place) -> None:
    running, run = place.begin({"jobs": {"a": {"command": "sleep 1"}}})
    with running:
        until(lambda: is_open(run.directory), "a door")
        with mpiflux.connect(run.directory) as flux:
            names = [event.name for event in flux.events()]
            assert names[-1] == "clean"
            with pytest.raises(mpiflux.InstanceEnded, match="over"):
                flux.status()
        assert running.wait(30).returncode == 0


def test_the_doors_directory_is_the_users_alone(place: Place) -> None:
    with instance(place) as (directory, _):
        path = Path(json.loads((directory / "instance.json").read_text())["doors"][0]["path"])
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.parent.stat().st_uid == os.getuid()
    assert not path.parent.exists()


def test_messages_reach_who_wants_them(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as flux, mpiflux.connect(directory) as other:
        subscriptions = {pattern: other.subscribe(pattern) for pattern in
                         ("md.energy", "md.*", "md.**", "**", "*.energy", "md", "**.energy", "md.*.energy")}
        sent = {"md.energy": 6, "md": 3, "md.a.energy": 4, "x": 1}
        for topic, reached in sent.items():
            assert flux.publish(topic, {"of": topic}) == reached, topic
        flux.publish("last.one.md.energy")
        other.status()  # an answer comes after what was sent before it
        got = {pattern: [] for pattern in subscriptions}
        for pattern, subscription in subscriptions.items():
            subscription.close()
            got[pattern] = [message.topic for message in subscription]
        assert got == {"md.energy": ["md.energy"], "md.*": ["md.energy"], "md.**": ["md.energy", "md", "md.a.energy"],
                       "**": [*sent, "last.one.md.energy"], "*.energy": ["md.energy"], "md": ["md"],
                       "**.energy": ["md.energy", "md.a.energy", "last.one.md.energy"], "md.*.energy": ["md.a.energy"]}
        assert flux.publish("md.energy") == 0
        for wrong in ("", "a..b", "a.*"):
            with pytest.raises(mpiflux.Rejected):
                flux.publish(wrong)


@pytest.mark.parametrize("ranks", RANKS)
def test_services(place: Place, ranks: int) -> None:
    place.write("server.py", """
import mpiflux, os
with mpiflux.connect() as flux:
    def handler(x):
        if x == "die":
            os._exit(1)
        return [os.environ["MPIFLUX_JOB_ID"], 1 / x]
    with flux.serve("half", handler) as service:
        flux.kvs.put("up." + os.environ["MPIFLUX_JOB_ID"], True)
        service.join()
""")
    with instance(place, "--cores-per-node", "4", ranks=ranks) as (directory, _), mpiflux.connect(directory) as flux:
        with pytest.raises(mpiflux.NoService, match="nobody serves 'half'"):
            flux.call("half", 2)
        servers = flux.submit_many([[PY, "server.py"]] * 2, cwd=str(place.path))
        for job in servers:
            flux.kvs.wait(f"up.{job.id}", 30)
        answers = [flux.call("half", 2, timeout=30) for _ in range(6)]
        assert {value for _, value in answers} == {0.5} and {int(id) for id, _ in answers} == {1, 2}
        with pytest.raises(mpiflux.RemoteError, match="ZeroDivisionError"):
            flux.call("half", 0, timeout=30)
        for _ in servers:
            with pytest.raises(mpiflux.NoService, match="gone before it answered"):
                flux.call("half", "die", timeout=30)
        with pytest.raises(mpiflux.NoService, match="nobody serves"):
            flux.call("half", 2, timeout=30)
        flux.serve("slow", lambda x: threading.Event().wait(x))
        with pytest.raises(TimeoutError):
            flux.call("slow", 2, timeout=0.1)


def test_queues(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as flux:
        queue = flux.queue("patches")
        with pytest.raises(mpiflux.Empty):
            queue.pull(wait=False)
        with pytest.raises(TimeoutError):
            queue.pull(timeout=0.1)
        queue.push("second")
        queue.push({"novel": 1}, priority=5)
        queue.push_many([b"third", 4])
        assert len(queue) == 4
        assert queue.pull() == {"novel": 1}
        with mpiflux.connect(directory) as dying:
            lost = dying.queue("patches").take()
            assert lost.value == "second"
            assert flux.queues() == {"patches": [2, 1, 0]}
        until(lambda: flux.queues()["patches"] == [3, 0, 0], "it returned")
        assert queue.pull(30) == "second", "in its old place"
        with pytest.raises(ZeroDivisionError), queue.take() as value:
            assert value == b"third"
            raise ZeroDivisionError
        with queue.take() as value:
            assert value == b"third"
        assert queue.pull() == 4 and len(queue) == 0
        got = []
        thread = threading.Thread(target=lambda: got.append(queue.pull(30)))
        thread.start()
        until(lambda: flux.queues().get("patches", [0, 0, 0])[2] == 1, "a consumer waits")
        queue.push("at last")
        thread.join()
        assert got == ["at last"]
