"""The commands that talk to a live instance."""

from __future__ import annotations

import json

import mpiflux
from tests.integration.test_live import instance
from tests.support.runs import Place, place, until

__all__ = ["place"]


def test_commands(place: Place) -> None:
    with instance(place, "--cores-per-node", "4") as (directory, _), mpiflux.connect(directory) as flux:
        at = ("--run-dir", directory.name)
        done = place.call("submit", *at, "-n1", "-c2", "--job-name", "one", "--env", "A=b {x}", "--wait",
                          "sh", "-c", "echo $A {cc} -n")
        assert done.stdout == "1\n"
        assert flux.job(1).result().stdout == "b {x} {cc} -n\n" and flux.job(1).record().cores == "0-1"
        done = place.call("submit", *at, "--cc=3-5", "--watch", "--dependency=afterok:1", "echo", "{cc}", "{x}")
        assert done.stdout.startswith("2\n3\n4\n")
        assert sorted(done.stdout.splitlines()[3:]) == ["3 {x}", "4 {x}", "5 {x}"]
        assert place.call("submit", *at, "--wait", "false", status=1).stdout == "5\n"
        assert "1000 cores" in place.call("submit", *at, "-c1000", "true", status=1).stderr
        place.call("submit", *at, "--urgency=0", "sleep", "60")
        assert flux.job(6).record().state == "DEPEND"
        assert place.call("cancel", *at, "6", "one", "--reason", "enough").stdout == "1 job cancelled\n"
        assert flux.job(6).result().reason == "enough"
        place.call("cancel", *at, status=2)
        place.call("job", "cancel", *at, "--all", status=1)

        with place.start("kvs", "watch", "a", *at) as watch, place.start("sub", "t.*", *at) as sub, \
                place.start("events", "echo", "--names", "clean", "--json", *at) as events:
            until(lambda: flux.status()["clients"] == 4, "all three look on")
            until(lambda: flux.publish("t.x", 0), "one listens")
            place.call("kvs", "put", *at, "a.b", '{"x": [1]}')
            place.call("kvs", "put", *at, "a.c", "a text")
            place.call("kvs", "rm", *at, "-R", "a")
            place.call("pub", *at, "t.u", '{"e": -1.5}')
            until(lambda: watch.stdout.count("\n") == 4, "four changes")
            until(lambda: "t.u" in sub.stdout, "a message")
            until(lambda: events.stdout.count("\n") == 3, "three events")
            changes = [json.loads(line) for line in watch.stdout.splitlines()]
            assert [change["value"] for change in changes] == [{"x": [1]}, "a text", None, None]
            assert json.loads(sub.stdout.splitlines()[-1]) == {"topic": "t.u", "payload": {"e": -1.5}}
            assert {json.loads(line)["job"] for line in events.stdout.splitlines()} == {2, 3, 4}
        flux.queue("q").push(1)
        assert json.loads(place.call("queue", "--json", *at).stdout)["q"]["waiting"] == 1
        assert "4 cores" in place.call("uptime", *at).stdout
    assert "live instance" in place.call("submit", *at, "true", status=1).stderr
