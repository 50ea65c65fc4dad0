"""``simulate``: durations, statistics, and variants side by side."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from mpiflux.cli.main import main
from mpiflux.model.jobspec import Dependency, HierarchySpec, JobGroup, LevelSpec, PolicySpec, Request, Workflow
from mpiflux.sim.compare import CannotSimulate, Variant, best, parse_policy, simulate, split_outside
from mpiflux.sim.costs import Costs, load_costs
from mpiflux.sim.durations import Distribution, DurationError, Durations, draw, parse_distribution
from mpiflux.sim.machine import build, parse_cluster
from mpiflux.sim.statistics import _curve, _steps

WORKFLOW = """\
mpiflux: 1
jobs:
  long: {command: x, parameters: {i: {range: 8}}, resources: {cores: 2}}
  short: {command: x, parameters: {i: {range: 40}}}
"""


# -- durations ---------------------------------------------------------------------------------------------------


def test_distributions() -> None:
    assert parse_distribution("fixed(10)") == parse_distribution("10") == Distribution("fixed", (10.0,))
    assert parse_distribution("uniform( 5, 20 )") == Distribution("uniform", (5.0, 20.0))
    assert parse_distribution("lognormal(1m, 0.5)") == parse_distribution("lognormal(60,0.5)")
    assert parse_distribution("lognormal(60,0.5)") == Distribution("lognormal", (60.0, 0.5))


@pytest.mark.parametrize(("text", "word"), [
    ("", "is not a duration"), ("10 parsecs", "is not a duration"), ("normal(1,2)", "no distribution 'normal'"),
    ("fixed()", "is not a duration"), ("fixed(1,2)", "fixed takes seconds"), ("uniform(5)", "takes least, most"),
    ("uniform(5,1)", "the smaller one first"), ("fixed(-1)", "from 0 on"), ("fixed(nan)", "is not a duration"),
    ("fixed(inf)", "is not a duration"), ("lognormal(1h,400)", "sigma .* at most 10"),
    ("lognormal(1h,1e308)", "numbers are seconds"), ("exponential(1e300)", "numbers are seconds"),
    ("uniform(0,1e12)", "numbers are seconds"), ("lognormal(1", "is not a duration"),
])
def test_wrong_distributions(text: str, word: str) -> None:
    with pytest.raises(DurationError, match=word):
        parse_distribution(text)


@pytest.mark.parametrize(("text", "median", "mean"), [
    ("fixed(7)", 7, 7), ("uniform(5,20)", 12.5, 12.5), ("exponential(60)", 60 * np.log(2), 60),
    ("lognormal(60,0.5)", 60, 60 * np.exp(0.125)),
])
def test_what_is_drawn_has_the_moments_it_should(text: str, median: float, mean: float) -> None:
    distribution, rng = parse_distribution(text), random.Random(5)
    drawn = [draw(distribution, rng) for _ in range(20_000)]
    assert np.median(drawn) == pytest.approx(median, rel=0.05)
    assert np.mean(drawn) == pytest.approx(mean, rel=0.05)


def test_durations_belong_to_jobs_and_not_to_schedules() -> None:
    groups = [JobGroup(number=0, name="a", first_id=1, count=50), JobGroup(number=1, name="b", first_id=51, count=50)]
    given = {"a": parse_distribution("exponential(60)"), "default": parse_distribution("uniform(1,2)")}
    forward, backward = Durations(groups, given, 3), Durations(groups, given, 3)
    first = [forward.outcome(group, i, 1) for group in groups for i in range(50)]
    second = [backward.outcome(group, i, 1) for group in reversed(groups) for i in reversed(range(50))]
    assert first == second[::-1]
    assert first != [Durations(groups, given, 4).outcome(group, i, 1) for group in groups for i in range(50)]


def test_what_a_job_takes_is_its_name_s_and_its_index_s() -> None:
    """An entry before it in the file, or more elements, change nothing for those that there are."""
    given = {"default": parse_distribution("lognormal(60,1)")}
    one = JobGroup(number=0, name="a", first_id=1, count=50)
    later, more = JobGroup(number=1, name="a", first_id=2, count=50), JobGroup(number=0, name="a", first_id=1, count=99)
    alone = list(Durations([one], given, 3).seconds(one))
    other = JobGroup(number=0, name="b", first_id=1, count=50)
    assert list(Durations([other, later], given, 3).seconds(later)) == alone
    assert list(Durations([more], given, 3).seconds(more))[:50] == alone
    assert list(Durations([other], given, 3).seconds(other)) != alone


def test_a_duration_of_ages_is_told() -> None:
    group = JobGroup(number=0, name="a", first_id=1, count=500)
    with pytest.raises(DurationError, match=r"a job of a would run for .* the most is 1e\+12 s"):
        Durations([group], {"a": parse_distribution("lognormal(9e11,10)")}, 1).seconds(group)


def test_a_group_without_a_duration_is_told() -> None:
    groups = [JobGroup(number=0, name="a", first_id=1, count=5)]
    with pytest.raises(DurationError, match=r"nothing says how long jobs of a run: give --duration a=… or"):
        Durations(groups, {}, 1)
    with pytest.raises(DurationError, match=r"the workflow has no job b; it has a"):
        Durations(groups, {"b": Distribution("fixed", (1.0,))}, 1)


def test_a_duration_comes_from_the_nearest_that_says_one() -> None:
    groups = [JobGroup(number=0, name="named", first_id=1, count=1, duration="2m", time_limit=500),
              JobGroup(number=1, name="own", first_id=2, count=1, duration="3m", time_limit=500),
              JobGroup(number=2, name="other", first_id=3, count=1, time_limit=500)]
    given = {"named": parse_distribution("1m"), "default": parse_distribution("4m")}

    def seconds(durations: Durations) -> list[float]:
        return [durations.outcome(group, 0, 1).seconds for group in groups]

    assert seconds(Durations(groups, given, 1)) == [60, 180, 240]
    bare = Durations(groups, {}, 1)
    assert seconds(bare) == [120, 180, 500] and bare.guessed == ["other"]


# -- statistics --------------------------------------------------------------------------------------------------


def test_utilisation_over_time_is_exact() -> None:
    starts, ends, widths = np.array([0.0, 5.0, 5.0]), np.array([10.0, 10.0, 7.0]), np.array([1.0, 2.0, 4.0])
    edges = np.linspace(0, 10, 5)
    by_hand = [np.mean([((starts <= t) & (t < ends)) @ widths for t in np.arange(low, low + 2.5, 0.001) + 0.0005])
               for low in edges[:-1]]
    assert _curve(*_steps(starts, ends, widths), edges) == pytest.approx(by_hand, rel=1e-3)


class Fixed:
    def outcome(self, group: JobGroup, index: int, attempt: int) -> object:
        from mpiflux.sim.executor import Outcome

        return Outcome(10.0)


def _workflow(*groups: JobGroup) -> Workflow:
    return Workflow(name="x", groups=groups)


def test_numbers_of_a_run_by_hand() -> None:
    """Six jobs of 10 s on two cores and a GPU each job: three rounds."""
    group = JobGroup(number=0, name="a", first_id=1, count=6, request=Request(cores=2, gpus=1))
    found = simulate(Variant("v", HierarchySpec(levels=()), PolicySpec()), build(parse_cluster("1x(8c,2g)")),
                     _workflow(group), Fixed(), Costs(commit=0.0))  # type: ignore[arg-type]
    assert found.makespan == pytest.approx(30, abs=0.1)
    assert found.wait_mean == pytest.approx(10, abs=0.1)
    assert found.slowdown_mean == pytest.approx(2, abs=0.02)
    assert found.utilisation == pytest.approx({"cores": 0.5, "gpus": 1.0}, rel=1e-2)
    assert found.curves["cores"].mean() == pytest.approx(0.5, rel=1e-2)
    assert found.as_dict()["completed"] == 6
    assert found.steady("gpus") == pytest.approx((0, 30, 1), abs=0.1)
    assert found.steady("cores") is None and found.steady("cores", 0.5) == pytest.approx((0, 30, 0.5), abs=0.1)


def test_a_job_that_never_ran_used_nothing() -> None:
    """Its dependency fails, so it is cancelled: it has no R, no wait, and no part of the machine."""
    wide = JobGroup(number=0, name="wide", first_id=1, count=2, request=Request(cores=8), time_limit=5)
    then = JobGroup(number=1, name="then", first_id=3, count=1, after=(Dependency("wide"),))
    found = simulate(Variant("v", HierarchySpec(levels=()), PolicySpec()), build(parse_cluster("1x(8c)")),
                     _workflow(wide, then), Fixed(), Costs(commit=0.0))  # type: ignore[arg-type]
    assert (found.jobs, found.completed, len(found.waits)) == (3, 0, 2)
    assert found.utilisation["cores"] == pytest.approx(1, abs=0.01)
    assert found.curves["cores"].max() <= 1 + 1e-9


# -- comparing ---------------------------------------------------------------------------------------------------


def test_policies_with_options() -> None:
    assert parse_policy("fcfs") == PolicySpec("fcfs")
    assert parse_policy("fcfs(queue_depth=1)") == PolicySpec("fcfs", {"queue_depth": 1})
    with pytest.raises(CannotSimulate, match="OPTION=VALUE"):
        parse_policy("fcfs(1)")
    assert split_outside("fcfs(a=1,b=2), easy,", ",") == ["fcfs(a=1,b=2)", "easy"]
    assert split_outside("none;node;{levels: [node, core]}", ";") == ["none", "node", "{levels: [node, core]}"]


def test_what_cannot_run_is_told() -> None:
    group = JobGroup(number=0, name="big", first_id=1, count=1, request=Request(cores=64))
    machine = build(parse_cluster("2x(8c)"))
    with pytest.raises(CannotSimulate, match=r"v: .*'big' asks for 64 cores"):
        simulate(Variant("v", None, PolicySpec()), machine, _workflow(group), Fixed(), Costs())  # type: ignore[arg-type]
    with pytest.raises(CannotSimulate, match="no policy is called 'fsfc'"):
        simulate(Variant("v", None, PolicySpec("fsfc")), machine, _workflow(), Fixed(), Costs())  # type: ignore[arg-type]


def test_the_best_is_the_shortest() -> None:
    group = JobGroup(number=0, name="a", first_id=1, count=64)
    machine = build(parse_cluster("4x(4c)"))
    one = simulate(Variant("one", HierarchySpec(levels=()), PolicySpec()), machine, _workflow(group), Fixed(),
                   Costs(feed_job=1.0, commit=0.0))  # type: ignore[arg-type]
    two = simulate(Variant("two", HierarchySpec(levels=(LevelSpec(by="node"),)), PolicySpec()), machine,
                   _workflow(group), Fixed(), Costs(feed_job=1.0, commit=0.0))  # type: ignore[arg-type]
    assert two.makespan < one.makespan, "four schedulers share what costs one a second a job"
    assert best([one, two]) is two
    assert two.levels[1].busy == pytest.approx(64, rel=0.01)
    assert two.levels[1].busiest == pytest.approx(16, rel=0.3)


def test_shipped_costs_are_readable_and_plausible() -> None:
    costs = load_costs()
    assert 1e-5 < costs.spawn < 1e-2
    assert 0 < costs.master_record < 1e-4
    assert 0 < costs.deal_job < 1e-4


@pytest.mark.parametrize("text", ["{}", '{"costs": {"spawn": "x"}}', '{"costs": {"spwan": 1}}',
                                  '{"costs": {"spawn": -1}}', "[]", "nonsense"])
def test_wrong_costs_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(ValueError):
        load_costs(str(tmp_path / "costs.json"))


# -- the command -------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main(["simulate", *argv])
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture
def workflow(tmp_path: Path) -> str:
    (tmp_path / "w.yaml").write_text(WORKFLOW)
    return str(tmp_path / "w.yaml")


def test_a_table_side_by_side(workflow: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, workflow, "--cluster", "2x(4c)", "--duration", "long=uniform(5,10)", "--duration",
                         "default=1", "--compare", "fcfs(queue_depth=1),fcfs", "--compare-hierarchy", "none;node")
    assert status == 0
    header = out.splitlines()[1]
    assert all(name in header for name in ("none fcfs(queue_depth=1)", "none fcfs", "node fcfs(queue_depth=1)"))
    assert "makespan" in out and "cores in use: mean" in out and "best: n" in out


def test_what_is_on_every_node_and_what_the_workflow_says_itself(tmp_path: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text("from mpiflux.sched.policies.fcfs import Fcfs\nclass Mine(Fcfs):\n    pass\n")
    (tmp_path / "w.yaml").write_text("""\
policy: "own:Mine"
jobs:
  watch: {command: x, per: node, resources: {cores: 0}, duration: 30s}
  work: {command: x, parameters: {i: {range: 16}}, duration: "uniform(10, 20)"}
""")
    status, out, err = run(capsys, str(tmp_path / "w.yaml"), "--cluster", "3x(4c)", "--compare", "own:Mine,easy",
                           "--json")
    assert (status, err) == (0, "")
    runs = json.loads(out)["runs"]
    assert [one["completed"] for one in runs] == [19, 19]
    assert all(30 < one["makespan"] < 41 for one in runs)


def test_json_and_the_same_seed(workflow: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (workflow, "--cluster", "2x(4c)", "--duration", "default=exponential(5)", "--json")
    first, second, other = run(capsys, *argv), run(capsys, *argv), run(capsys, *argv, "--seed", "2")
    assert first == second != other
    data = json.loads(first[1])
    assert data["cluster"] == {"nodes": 2, "cores": 8, "gpus": 0}
    assert data["runs"][0]["completed"] == 48
    assert len(data["runs"][0]["utilisation_over_time"]["cores"]) == 200


def test_a_trace_needs_no_workflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.swf").write_text("; comment\n1 0 -1 10 2 -1 -1 2 20 -1 1 1 1 -1 1 1 -1 -1\n")
    status, out, _ = run(capsys, "--trace", str(tmp_path / "t.swf"), "--cluster", "1x(2c)", "--json")
    assert status == 0
    assert json.loads(out)["runs"][0]["makespan"] == pytest.approx(10, abs=0.1)


def test_a_plot_is_drawn(workflow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    status, _, _ = run(capsys, workflow, "--cluster", "2x(4c,1g)", "--duration", "default=3", "--plot",
                       str(tmp_path / "use.png"))
    assert status == 0
    assert (tmp_path / "use.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("target", "word"), [
    ("use.nonsense", "does not end in a format: .png"), ("use", "does not end in a format"), ("", "does not end in"),
    ("no/such/use.png", "there is no directory"), ("folder.png", "it is a directory"),
])
def test_a_picture_that_cannot_be_drawn_is_told_before_the_simulation(
        workflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str,
        word: str) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    there = sorted(tmp_path.iterdir())
    status, out, err = run(capsys, workflow, "--cluster", "2x(4c)", "--duration", "default=3", "--plot", target)
    assert (status, out) == (2, "")
    assert word in err and err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize(("argv", "word"), [
    (("--duration", "default=1", "--cluster", "nonsense"), "describes no nodes"),
    (("--cluster", "1x(4c)"), "nothing says how long jobs of long run"),
    (("--cluster", "1x(1c)", "--duration", "default=1"), "asks for 2 cores"),
    (("--cluster", "1x(4c)", "--duration", "default=1", "--policy", "nope"), "no policy is called 'nope'"),
    (("--cluster", "1x(4c)", "--duration", "default=1", "--compare", ","), "nothing to compare"),
    (("--cluster", "1x(4c)", "--duration", "default=1", "--hierarchy", "nodes"), "nodes"),
    (("--cluster", "1x(4c)", "--duration", "default=lognormal(1h,400)"), "at most 10"),
    (("--cluster", "1x(4c)", "--duration", "default=lognormal(9e11,10)"), "a job of long would run for"),
    (("--cluster", "1x(4c)", "--duration", "default=1", "--costs", "/no/such"), "/no/such: No such file"),
    (("--cluster", "1x(4c)", "--trace", "/no/such.swf"), "/no/such.swf: No such file"),
])
def test_mistakes_are_told_in_a_line(workflow: str, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...],
                                     word: str) -> None:
    status, out, err = run(capsys, workflow, *argv)
    assert (status, out) == (2, "")
    assert word in err and "Traceback" not in err
