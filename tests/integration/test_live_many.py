"""Much of everything at once: bulk submissions, many clients, slow ones, lost connections; and coroutines."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import socket

import pytest

import mpiflux
import mpiflux.aio
from mpiflux.model import requests as r
from mpiflux.model.frames import pack
from tests.integration.test_live import HELLO, RANKS, _raw, instance
from tests.support.runs import Place, place, until

__all__ = ["place"]


def test_a_hundred_thousand_jobs_in_one_call(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as flux:
        jobs = flux.submit_many((["echo", f"--seed={i}", "{x}"] for i in range(100_000)), hold=True)
        assert (len(jobs), jobs[0].id, jobs[-1].id) == (100_000, 1, 100_000)
        assert flux.status()["jobs"]["depend"] == 100_000 and flux.status()["groups"] == 1
        assert flux.kvs.get("job.77778.jobspec")["command"] == ["echo", "--seed=77777", "{x}"]
        mixed = flux.submit_many([["echo", "a"], ["echo", "b", "c"], ["true"], ["echo", "d"]])
        assert mixed.wait(60).ok
        assert [result.stdout for result in mixed.results()] == ["a\n", "b c\n", "", "d\n"]
        assert jobs.cancel() == 100_000
        assert jobs.wait(60).canceled == 100_000


@pytest.mark.parametrize("ranks", RANKS)
def test_a_thousand_clients(place: Place, ranks: int) -> None:
    with instance(place, "--cores-per-node", "2", ranks=ranks) as (directory, _), mpiflux.connect(directory) as flux:
        path = flux._connection.path
        clients = []
        for _ in range(1000):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            sock.sendall(HELLO + pack(r.encode(r.Call(1, r.Subscribe(2, "news")))))
            clients.append(sock)
        until(lambda: flux.status()["clients"] == 1001, "a thousand clients", 30)
        assert flux.publish("news", "x" * 100) == 1000
        for sock in clients:
            sock.settimeout(30)
            said = b""
            while b"x" * 100 not in said:
                piece = sock.recv(1 << 16)
                assert piece
                said += piece
            sock.close()
        until(lambda: flux.status()["clients"] == 1, "they are forgotten", 30)


def test_who_does_not_read_is_dropped_with_a_reason_and_stalls_nobody(place: Place) -> None:
    with instance(place) as (directory, running), mpiflux.connect(directory) as flux:
        sock = _raw(directory)
        sock.sendall(HELLO + pack(r.encode(r.Call(1, r.Subscribe(2, "**")))))
        until(lambda: flux.publish("t") == 1, "it listens", 20)
        payload = bytes(1 << 20)
        dropped = 0
        for _ in range(120):
            dropped += not flux.publish("t", payload)
        assert dropped and flux.status()["clients"] == 1
        memory = _resident(running.process.pid)
        assert memory < 400 << 20, f"{memory >> 20} MiB"
        said = b""
        while piece := sock.recv(1 << 20):
            said = said[-1000:] + piece
        sock.close()
        assert b"does not read" in said


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_events_and_watches_go_on_after_a_lost_connection(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as flux, mpiflux.connect(directory) as other:
        jobs = flux.submit_many(["true", "{n}"], params={"n": range(300)}, hold=True)
        events, watch = flux.events(), flux.kvs.watch("k")
        told, changes = [next(events) for _ in range(100)], []
        for cut in range(3):
            flux._connection._sock.shutdown(socket.SHUT_RDWR)
            if not cut:
                other.release(jobs)
            for i in range(5):
                other.kvs.put("k.x", 5 * cut + i)
            changes += [watch.get(30).value for _ in range(5)]
            told += [events.get(30) for _ in range(200)]
        assert jobs.wait(60).ok
        told += [events.get(30) for _ in range(2100 - len(told))]
        assert changes == list(range(15))
        assert told == list(other.events(finite=True))


def test_a_lost_connection_is_told_to_who_waits(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as flux:
        subscription = flux.subscribe("news")
        flux._connection._sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(mpiflux.ConnectionLost):
            subscription.get(30)
        assert flux.submit(["true"]).result(30).ok


def test_what_is_asked_while_there_is_no_connection_waits_for_the_next(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as flux:
        door = flux._connection.path
        os.rename(door, door + ".away")
        subscription = flux.subscribe("news")
        open(door, "w").close()
        flux._connection._sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(mpiflux.ConnectionLost):
            subscription.get(30)
        with pytest.raises(TimeoutError):
            flux.kvs.wait("k", 0.2)
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(flux.kvs.put, f"k.{i}", i) for i in range(4)]
            os.rename(door + ".away", door)
            concurrent.futures.wait(asked, 30)
        assert sorted(flux.kvs.ls("k")) == [f"k.{i}" for i in range(4)]
        for _ in range(30):
            try:
                flux._connection._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the last one is closed, and the next not there yet
            try:
                assert isinstance(flux.kvs.put("again", 1), int)
            except mpiflux.ConnectionLost:
                pass


@pytest.mark.parametrize("ranks", RANKS)
def test_the_same_with_coroutines(place: Place, ranks: int) -> None:
    async def steer(directory: object) -> None:
        async with await mpiflux.aio.connect(str(directory)) as flux:
            job = await flux.submit(["echo", "hi"])
            assert [event.name async for event in job.events()][-1] == "clean"
            assert (await job.result()).stdout == "hi\n"
            jobs = await flux.submit_many([["echo", str(i)] for i in range(20)])
            results = await asyncio.gather(*(one.result() for one in jobs))
            assert [result.stdout for result in results] == [f"{i}\n" for i in range(20)]
            assert (await jobs.wait()).ok
            watch = await flux.kvs.watch("a")
            await flux.kvs.put("a.b", {"x": 1})
            assert (await watch.get()).value == {"x": 1}
            with pytest.raises(mpiflux.NoKey):
                await flux.kvs.get("nothing")
            messages = await flux.subscribe("t.*")
            assert await flux.publish("t.u", [1]) == 1
            assert await anext(messages) == ("t.u", [1])

            async def handler(value: int) -> int:
                await asyncio.sleep(0)
                return 2 * value

            async with await flux.serve("double", handler):
                assert await asyncio.gather(*(flux.call("double", i) for i in range(50))) == [
                    2 * i for i in range(50)]
            with pytest.raises(mpiflux.NoService):
                await flux.call("double", 1)
            queue = flux.queue("q")
            pulled = asyncio.create_task(queue.pull())
            await queue.push(7)
            assert await pulled == 7
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(queue.pull(), 0.05)
            await queue.push(8)
            async with await queue.take() as value:
                assert value == 8
            sleeper = await flux.submit(["sleep", "60"])
            assert await sleeper.cancel()
            assert (await sleeper.result()).result == "CANCELED"

    with instance(place, "--cores-per-node", "4", ranks=ranks) as (directory, _):
        asyncio.run(asyncio.wait_for(steer(directory), 60))


def test_both_interfaces_have_the_same_names() -> None:
    import mpiflux.client.live as blocking

    for name in ("Flux", "Job", "Jobs", "Kvs", "Queue", "Service", "Item"):
        one, other = getattr(blocking, name), getattr(mpiflux.aio, name)
        names = {word for word in vars(one) if not word.startswith("_")}
        assert names == {word for word in vars(other) if not word.startswith("_")}, name
