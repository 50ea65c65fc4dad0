"""Ranks started again after a loss: when, with which command, on which hosts, and what is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.cli.main import main
from mpiflux.instance.hosts import Layout
from mpiflux.instance.restarts import Plan, launch_again, without_hosts
from mpiflux.instance.selflaunch import Outcome, one_host

KILLED = Outcome(137, (0,), up=True, over=False)
LOST = Outcome(143, (2,), up=True, over=False)
UNREACHED = Outcome(3, (2,), up=False, over=False)
DONE = Outcome(0)
HOSTS = Layout(("a", "b", "c", "c"), ("ssh",), frozenset({"a"}))


class Starts:
    """Plays the outcomes of one start after the other, and keeps what was asked for."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.commands: list[Sequence[str]] = []
        self.hosts: list[tuple[str, ...]] = []
        self.stops: list[bool] = []
        self.told: list[str] = []
        self.now = 0.0

    def __call__(self, argv: Sequence[str], environ: Any, tell: Any, layout: Layout, ready: bool,
                 stop_when_lost: bool) -> Outcome:
        self.commands.append(argv)
        self.hosts.append(layout.hosts)
        self.stops.append(stop_when_lost)
        self.now += 10
        outcome = self.outcomes.pop(0)
        return outcome._replace(lost=tuple(rank % len(layout.hosts) for rank in outcome.lost))

    def play(self, restarts: int, layout: Layout | None = None, time_limit: float = 0.0) -> int:
        plan = Plan(lambda resume, left: ["again" if resume else "first", f"{left:g}"], layout or one_host(4), restarts,
                    time_limit)
        return launch_again(plan, {}, self.told.append, lambda: self.now, self)


@pytest.mark.parametrize("last, status", [(DONE, 0), (Outcome(1), 1), (Outcome(130, (2,), up=True, over=True), 130)])
def test_a_run_that_has_come_to_its_end_is_not_started_again(last: Outcome, status: int) -> None:
    starts = Starts(last)
    assert starts.play(5) == status
    assert starts.commands == [["first", "0"]] and not starts.told


def test_a_lost_rank_starts_all_again_resuming() -> None:
    starts = Starts(LOST, KILLED, DONE)
    assert starts.play(2) == 0
    assert starts.commands == [["first", "0"], ["again", "0"], ["again", "0"]]
    assert starts.told == ["rank 2 was lost: going on with the run (restart 1 of 2)",
                           "rank 0 was lost: going on with the run (restart 2 of 2)"]
    assert starts.stops == [True, True, False], "the last one goes on without what it loses"


def test_no_more_often_than_asked_for() -> None:
    starts = Starts(KILLED, KILLED)
    assert starts.play(1) == 137
    assert len(starts.commands) == 2
    assert starts.told[-1] == ("rank 0 was lost, and all ranks have been started again once, as --restarts has it: "
                               "go on with run --resume")


def test_without_restarts_nothing_is_said_that_was_not_before() -> None:
    starts = Starts(KILLED)
    assert starts.play(0) == 137
    assert starts.stops == [False] and not starts.told


def test_ranks_that_never_came_up_are_not_tried_again() -> None:
    starts = Starts(UNREACHED)
    assert starts.play(3, HOSTS) == 3 and len(starts.commands) == 1


def test_a_host_that_cannot_be_reached_any_more_is_left_out_and_costs_no_restart() -> None:
    starts = Starts(LOST, UNREACHED, KILLED, DONE)
    assert starts.play(2, HOSTS) == 0
    assert starts.hosts == [HOSTS.hosts, HOSTS.hosts, ("a", "b"), ("a", "b")]
    assert starts.told[1] == "rank 2 on c was not to be started: going on without c"


def test_this_host_is_never_left_out() -> None:
    assert without_hosts(HOSTS, [0]) is None
    assert without_hosts(HOSTS, [0, 3]) == HOSTS._replace(hosts=("a", "b"))
    assert without_hosts(HOSTS._replace(hosts=("b", "b")), [1]) is None, "nothing would be left"


def test_all_starts_share_one_time_limit() -> None:
    starts = Starts(LOST, LOST, LOST)
    assert starts.play(9, time_limit=25) == 143
    assert starts.commands == [["first", "25"], ["again", "15"], ["again", "5"]]


@given(st.lists(st.sampled_from([KILLED, LOST, UNREACHED]), max_size=12), st.integers(0, 5))
def test_it_comes_to_an_end(outcomes: list[Outcome], restarts: int) -> None:
    starts = Starts(*outcomes, DONE, *([DONE] * 20))
    starts.play(restarts, HOSTS)
    # each restart, the first start, and one for each host that may be left out
    assert len(starts.commands) <= 1 + restarts + 2


@pytest.mark.parametrize("words, what", [
    (["--restarts", "2", "--run-dir", "d"], "give --ranks N or --hosts A,B too"),
    (["--restarts", "2", "--ranks", "2"], "name one by --run-dir DIR"),
    (["--restarts", "-1", "--ranks", "2"], "'-1' is not a whole number from 0 on"),
])
def test_what_it_needs_is_told(words: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "w.yaml", *words]) == 2
    assert what in capsys.readouterr().err


def test_the_ranks_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpiflux.instance import restarts

    plans: list[Plan] = []
    monkeypatch.setattr(restarts, "launch_again", lambda plan, *_: plans.append(plan) or 0)
    main(["run", "w.yaml", "--ranks=2", "--restarts", "1", "--run-dir", "d", "--resume", "--rerun", "failed",
          "--rerun-changed", "--time-limit", "1h", "--set", "a=1"])
    main(["start", "--ranks", "2", "--restarts=1", "--run-dir", "d", "--", "prog", "--ranks", "7"])
    run, start = plans
    assert run.time_limit == 3600 and run.restarts == 1
    assert list(run.words(False, 3600.0))[3:] == [
        "run", "w.yaml", "--run-dir", "d", "--resume", "--rerun", "failed", "--rerun-changed", "--time-limit", "1h",
        "--set", "a=1"]
    assert list(run.words(True, 12.0))[3:] == [
        "run", "--resume", "--time-limit=12.0s", "w.yaml", "--run-dir", "d", "--set", "a=1"]
    assert list(start.words(True, 0.0))[3:] == ["start", "--resume", "--run-dir", "d", "--", "prog", "--ranks", "7"]
