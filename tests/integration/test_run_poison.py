"""A job that kills what runs it is not tried for ever, and what is beside it runs."""

from __future__ import annotations

from mpiflux.store.crashes import LIMIT
from tests.support.runs import Place


def test_a_job_that_kills_its_supervisor_again_and_again_has_failed(place: Place) -> None:
    kill = "kill -9 $PPID; sleep 10"
    flow = {"jobs": {
        "poison": {"command": f"echo {{job.attempt}} >>marks; sleep 0.2; {kill}", "shell": True, "retries": 3},
        # nobody has heard that it runs when it kills
        "at_once": {"command": kill, "shell": True, "after": {"poison": "any"}},
        "other": {"command": "echo well", "shell": True, "parameters": {"i": {"range": 20}}},
        "then": {"command": "true", "after": ["at_once"]}}}
    place.expected.add("marks")
    run = place.run(flow, "--cores-per-node", "2", status=1)
    assert (place.path / "marks").read_text().split() == [str(n + 1) for n in range(LIMIT)]
    for name in ("poison", "at_once"):
        job = run.job(name)
        assert (job["result"], job["returncode"]) == ("FAILED", -9)
        assert f"died {LIMIT} times, the last time: its supervisor was killed" in job["reason"]
    assert run.results() == {"FAILED": 2, "COMPLETED": 20, "CANCELED": 1}
