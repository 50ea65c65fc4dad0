"""Clients that flood, and clients that are killed at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import mpiflux
from mpiflux.model import requests as r
from mpiflux.model.frames import pack
from mpiflux.store.kvs import put
from tests.integration.test_live import HELLO, RANKS, _raw, instance
from tests.support.runs import Place, place, until

__all__ = ["place"]

BUSY = """
import sys, threading, mpiflux
with mpiflux.connect(sys.argv[1], keep=True) as flux:
    me = sys.argv[2]
    service = flux.serve("svc", lambda x: x)
    job = flux.submit(["sleep", "600"], name="kept", input="-")
    streams = [flux.kvs.watch("k"), flux.events(), flux.subscribe("**")]
    def forever(what):
        while True: what()
    for what in (lambda: flux.kvs.put("k." + me, bytes(20000)), lambda: flux.queue("q").push(me),
                 lambda: flux.queue("q").take(), lambda: flux.call("svc", 1), lambda: flux.publish("t", me),
                 lambda: job.stdin.write(b"x" * 200000), lambda: flux.kvs.fence("f", 1000), lambda: next(job.output()),
                 lambda: flux.kvs.wait("never"), lambda: flux.submit(["true"])):
        threading.Thread(target=forever, args=(what,), daemon=True).start()
    print("up", flush=True)
    threading.Event().wait()
"""


def rss(pid: int) -> int:
    """Bytes of memory of the largest process of this tree."""
    found = 0
    todo = [pid]
    while todo:
        one = todo.pop()
        try:
            found = max(found, int(Path(f"/proc/{one}/statm").read_text().split()[1]) * 4096)
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


@pytest.mark.parametrize("ranks", RANKS)
def test_clients_killed_at_any_moment_leave_only_what_they_asked_to_keep(place: Place, ranks: int) -> None:
    chance = random.Random(7)
    with instance(place, "--cores-per-node", "4", ranks=ranks) as (directory, _), \
            mpiflux.connect(directory) as flux:
        clients = [subprocess.Popen([sys.executable, "-c", BUSY, str(directory), str(n)], stdout=subprocess.PIPE)
                   for n in range(3)]
        for client in clients:
            assert client.stdout is not None and client.stdout.readline() == b"up\n"
            time.sleep(chance.uniform(0, 0.1))
            client.send_signal(signal.SIGKILL)
            client.wait()
            client.stdout.close()
        until(lambda: flux.status()["clients"] == 1, "the dead are forgotten")
        _, taken, consumers = flux.queues().get("q", [0, 0, 0])
        assert (taken, consumers) == (0, 0)
        with pytest.raises(mpiflux.NoService):
            flux.call("svc", 1)
        # a fence of another size: nobody stands at the old one
        flux.kvs.fence("f", 1, timeout=30)
        assert flux.group("kept").cancel() == len(clients), "jobs that were submitted stay"
        flux.cancel()
        flux.wait(timeout=60)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_flood_of_requests_is_held_back_and_costs_a_bounded_amount(place: Place, ranks: int) -> None:
    import msgspec

    with instance(place, ranks=ranks) as (directory, running), mpiflux.connect(directory) as flux:
        flux.kvs.put("big", bytes(8 << 20))
        before = rss(running.process.pid)
        op = r.Txn(msgspec.msgpack.encode((put("flood", bytes(100_000)),)))
        flood = pack(r.encode(r.Call(0, op))) * 20
        stop, poured = threading.Event(), [0]

        def pour() -> None:
            with _raw(directory) as sock:
                sock.sendall(HELLO)
                while not stop.is_set():
                    sock.sendall(flood)
                    poured.append(len(flood))

        thread = threading.Thread(target=pour)
        thread.start()
        try:
            with _raw(directory) as greedy:
                # 4 GB of answers are asked for and never read
                greedy.sendall(HELLO + b"".join(pack(r.encode(r.Call(n, r.Get("big")))) for n in range(1, 501)))
                for n in range(50):
                    flux.kvs.put("n", n)
                    assert flux.kvs.get("n") == n
                until(lambda: sum(poured) > 30 << 20, "a flood")
                most = rss(running.process.pid) - before
        finally:
            stop.set()
            thread.join()
        assert most < 400 << 20, f"{most >> 20} MiB more than before"
