"""Policies on cases worked by hand, how they are found by name, and a user's own."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpiflux.model import messages as m
from mpiflux.model.jobspec import PolicySpec, Request
from mpiflux.model.resources import NodeResources
from mpiflux.sched.policies import KNOWN, Machine, Policy, PolicyError, make, planner
from mpiflux.sched.profile import UNLIMITED
from mpiflux.sched.queue import WorkQueue
from mpiflux.sched.testing import PolicyFault, Trial, TrialJob, check_policy, node
from mpiflux.spec import WorkflowError, load

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def cores(n: int) -> Request:
    return Request(cores=n)


def starts(policy: Policy, jobs: list[TrialJob], nodes: list[NodeResources]) -> list[float]:
    trial = Trial(policy, jobs, nodes)
    found = sorted(trial.run(), key=lambda one: one.job)
    assert [one.job for one in found] == list(range(len(jobs)))
    return [one.start for one in found]


# -- worked by hand ----------------------------------------------------------------------------------------------

# Ten cores. Job 0 has 6 until 10. Job 1 wants 8: at 10. Job 2 (4 cores, 8 s) ends before that. Job 3 (2 cores, 20 s)
# does not, but 10 - 8 = 2 cores are left beside job 1. Job 4 (1 core, 20 s) would take a core from job 1.
TEXTBOOK = [TrialJob(0, 10, 10, cores(6)), TrialJob(1, 10, 10, cores(8)), TrialJob(1, 8, 8, cores(4)),
            TrialJob(1, 20, 20, cores(2)), TrialJob(1, 20, 20, cores(1))]


@pytest.mark.parametrize(("name", "options", "expected"), [
    # strictly in order: job 2 at 20, when job 1 has ended; 3 and 4 beside it
    ("fcfs", {"queue_depth": 1}, [0, 10, 20, 20, 20]),
    # job 2 now; job 3 finds its 2 cores when job 2 has ended, and leaves 8 for job 1; job 4 must wait for job 1
    ("easy", {}, [0, 10, 1, 9, 20]),
    ("conservative", {}, [0, 10, 1, 9, 20]),
    # looks past the head without promising it anything: all of 2 and 3 now, 4 as soon as there is a core
    ("fcfs", {"queue_depth": 5}, [0, 29, 1, 9, 9]),
])
def test_textbook(name: str, options: dict[str, int], expected: list[float]) -> None:
    assert starts(make(PolicySpec(name, dict(options))), TEXTBOOK, [node(10)]) == expected


def test_easy_may_delay_the_second_in_line_and_conservative_may_not() -> None:
    """Mu'alem and Feitelson's figure 1: what EASY backfills may push back jobs that have no reservation."""
    jobs = [TrialJob(0, 10, 10, cores(6)),   # runs
            TrialJob(1, 10, 10, cores(7)),   # the head: at 10
            TrialJob(1, 10, 10, cores(9)),   # the second: at 20, when the head has ended
            TrialJob(1, 29, 29, cores(3))]   # fits beside the head, until 30
    assert starts(make(PolicySpec("easy")), jobs, [node(10)]) == [0, 10, 30, 1]
    assert starts(make(PolicySpec("conservative")), jobs, [node(10)]) == [0, 10, 20, 30]


def test_conservative_compresses_when_a_job_ends_early() -> None:
    jobs = [TrialJob(0, 5, 20, cores(8)), TrialJob(1, 10, 10, cores(10)), TrialJob(1, 10, 10, cores(5)),
            TrialJob(1, 10, 30, cores(2))]
    # the last one would take until 31, and job 1 is promised 20: so it was promised 30, beside job 2
    assert starts(make(PolicySpec("conservative")), jobs, [node(10)]) == [0, 5, 15, 15]


def test_a_place_is_held_on_nodes_and_not_in_numbers() -> None:
    """Four cores are free on two nodes, and no node has them: the job waits for a whole node, and gets the one that
    is free first; the other one is free for long jobs."""
    nodes = [node(4, index=0), node(4, index=1)]
    jobs = [TrialJob(0, 10, 10, cores(2)), TrialJob(0, 50, 50, cores(4)), TrialJob(0, 60, 60, cores(4)),
            TrialJob(0, 90, 90, cores(2)), TrialJob(0, 9, 9, cores(2))]
    assert starts(make(PolicySpec("easy")), jobs, nodes) == [0, 0, 10, 50, 0]


def test_gpus_are_held_with_their_cores_and_other_cores_are_not() -> None:
    gpu = Request(cores=3, gpus=1)
    jobs = [TrialJob(0, 100, 100, gpu), TrialJob(1, 10, 10, gpu), *[TrialJob(2, 500, 500, cores(1))] * 6]
    # of eight cores three are in use, and three more are wanted at 100: those are the same ones
    assert starts(make(PolicySpec("easy")), jobs, [node(8, 1)]) == [0, 100, 2, 2, 2, 2, 2, 110]


def test_a_head_without_limits_around_it_is_passed_only_by_what_ends() -> None:
    jobs = [TrialJob(0, 50, 0, cores(2)), TrialJob(1, 5, 0, cores(4)), TrialJob(2, 5, 0, cores(1)),
            TrialJob(2, 5, 20, cores(1))]
    assert starts(make(PolicySpec("easy")), jobs, [node(4)]) == [0, 50, 55, 2]


def test_patience_lets_small_jobs_pass_for_a_while() -> None:
    small = [TrialJob(float(i), 10.0, 10, cores(1)) for i in range(200)]
    jobs = [*small, TrialJob(5, 1, 1, cores(12))]
    for patience, latest in ((0, 15), (60, 75), (150, 165)):
        start = starts(make(PolicySpec("fcfs", {"patience": patience})), jobs, [node(12)])[-1]
        assert 5 + patience < start <= latest


def test_equal_jobs_count_once() -> None:
    """A thousand jobs that wait for the GPU do not hide the job behind them."""
    jobs = [TrialJob(0, 10, 10, Request(gpus=1), count=1000), TrialJob(0, 10, 10, cores(1))]
    trial = Trial(make(PolicySpec("fcfs", {"queue_depth": 2})), jobs, [node(4, 1)])
    trial.run(until=0.0)
    assert [one.job for one in trial.starts] == [0, 1]


@pytest.mark.parametrize("name", ["easy", "conservative"])
def test_short_jobs_are_not_given_ahead_over_a_place_that_is_held(name: str) -> None:
    """Jobs of a millisecond are fed to leases that go on; a job that needs all cores ends that."""
    jobs = [TrialJob(0, 0.001, 1, cores(1), count=3000), TrialJob(0.3, 1, 1, cores(4)),
            TrialJob(0.3, 0.001, 1, cores(1), count=3000)]
    trial = Trial(make(PolicySpec(name)), jobs, [node(4)])
    found = trial.run()
    assert len(found) == 6001
    assert len({one.r for one in found}) == 5
    large = next(one for one in found if one.job == 1)
    # the first 3000 take 0.75 s on four cores; nothing of the last 3000 comes before it
    assert 0.74 < large.start < 0.9
    assert min(one.start for one in found if one.job == 2) >= large.end


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_short_jobs_are_given_ahead_under_every_policy(name: str) -> None:
    """Else each job of a millisecond costs a decision and a message."""
    trial = Trial(make(PolicySpec(name)), [TrialJob(0, 0.001, 60, cores(1), count=5000)], [node(4)])
    assert len(trial.run()) == 5000
    assert trial.below._next_lease < 500


def test_lent_resources_leave_the_timetable_and_come_back() -> None:
    policy = make(PolicySpec("easy"))
    jobs = [TrialJob(0, 10, 10, cores(2)), TrialJob(1, 5, 5, cores(4)), TrialJob(40, 1, 1, cores(1))]
    trial = Trial(policy, jobs, [node(4)])
    trial.run(until=5.0)
    assert [one.start for one in policy.reservations] == [10.0]
    share = m.NodeShare(0, (3,), (), 0, 0)
    trial.scheduler.receive(-1, m.Borrow(7, (share,)), 5.0)
    assert any(isinstance(message, m.Lend) for _, message in trial.scheduler.settle(5.0))
    assert not policy.reservations
    trial.scheduler.receive(-1, m.Return((share,)), 6.0)
    trial.scheduler.settle(6.0)
    assert [one.start for one in policy.reservations] == [10.0]


def test_a_reservation_behind_a_job_without_a_limit_is_a_place_in_line() -> None:
    policy = make(PolicySpec("easy"))
    trial = Trial(policy, [TrialJob(0, 9, 0, cores(2)), TrialJob(1, 1, 5, cores(2))], [node(2)])
    trial.run(until=1.0)
    (held,) = policy.reservations
    assert held.start >= UNLIMITED and not held.is_known
    policy = make(PolicySpec("easy"))
    trial = Trial(policy, [TrialJob(0, 9, 9, cores(2)), TrialJob(1, 1, 5, cores(2))], [node(2)])
    trial.run(until=1.0)
    assert policy.reservations[0].is_known and policy.reservations[0].start == 9


def test_a_cancelled_job_gives_its_place_to_the_next() -> None:
    policy = make(PolicySpec("conservative"))
    jobs = [TrialJob(0, 10, 10, cores(2)), TrialJob(0, 100, 100, cores(2)), TrialJob(0, 5, 5, cores(2))]
    trial = Trial(policy, jobs, [node(2)])
    trial.run(until=0.0)
    assert [(one.group, one.start) for one in policy.reservations] == [(1, 10), (2, 110)]
    trial.scheduler.receive(-1, m.Cancel((2,)), 3.0)
    trial.scheduler.settle(3.0)
    assert [(one.group, one.start) for one in policy.reservations] == [(2, 10)]


def test_time_limits_that_are_overrun_hold_others_back() -> None:
    """A job takes longer to die than it should: what is promised from its end on is late, and stays first."""
    class Late(Trial):
        def _start(self, chunk: m.Chunk, *rest: object) -> None:
            super()._start(chunk, *rest)  # type: ignore[arg-type]
            if chunk.group == 0:
                self._ends[-1] = (14.0, *self._ends[-1][1:])

    jobs = [TrialJob(0, 10, 10, cores(1)), TrialJob(1, 5, 5, cores(2)), TrialJob(11, 3, 3, cores(1))]
    for name in ("easy", "conservative"):
        found = Late(make(PolicySpec(name)), jobs, [node(2)]).run()
        assert [(one.job, one.start) for one in found] == [(0, 0), (1, 14), (2, 19)]


def test_jobs_bound_to_a_node_have_their_places_there() -> None:
    """One job for each node, of a node that is full: it waits for its own, and is not passed for ever."""
    nodes = [node(4, index=0), node(4, index=1)]
    stream = [TrialJob(float(i), 4.0, 4, cores(1)) for i in range(100)]
    jobs = [TrialJob(0, 30, 30, cores(4)), *stream, TrialJob(1, 5, 5, cores(4), count=2, on=(0, 1))]
    for name, options in (("easy", {}), ("conservative", {}), ("fcfs", {"patience": 10})):
        found = [one for one in Trial(make(PolicySpec(name, dict(options))), jobs, nodes).run() if one.job == 101]
        assert sorted(one.r.shares[0].node for one in found) == [0, 1]
        assert all(one.start <= 60 for one in found)


# -- by name -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "message"), [
    ("sjf", {}, "no policy is called 'sjf'; there is: conservative, easy, fcfs, priority, or your own as"),
    ("easy", {"patience": 3}, "policy easy has no option patience; it has: queue_depth"),
    ("fcfs", {"queue_depth": 0}, "queue_depth must be a whole number of at least 1, not 0"),
    ("conservative", {"queue_depth": True}, "not True"),
    ("fcfs", {"patience": -1}, "patience must be a number of at least 0, not -1"),
    ("priority", {"ageing": "fast"}, "not 'fast'"),
    ("nowhere.at_all:Policy", {}, "cannot be loaded: ModuleNotFoundError"),
    ("json:Policy", {}, "cannot be loaded: AttributeError"),
    ("json:loads", {}, "loads is not a class derived from mpiflux.sched.policies.Policy"),
    ("mpiflux.sched.policies:Policy", {}, "Policy has no method schedule"),
])
def test_what_cannot_be_made_says_why(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError) as error:
        make(PolicySpec(name, dict(options)))  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.fixture
def clean_imports() -> Iterator[None]:
    path, modules = sys.path.copy(), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]


MINE = '''
from mpiflux.sched.policies import Policy
class Mine(Policy):
    options = ("speed",)
    def schedule(self, queue, machine, now):
        for entry in queue:
            queue.take(entry, machine.start(entry))
'''


def test_a_policy_beside_the_workflow_file(tmp_path: Path, clean_imports: None) -> None:
    (tmp_path / "my_policies.py").write_text(MINE)
    file = tmp_path / "w.yaml"
    file.write_text("policy: {name: 'my_policies:Mine', speed: 3}\njobs: {a: {command: x}}")
    spec = load(str(file)).policy
    assert spec == PolicySpec("my_policies:Mine", {"speed": 3}, str(tmp_path))
    policy = make(spec)
    assert type(policy).__name__ == "Mine" and policy.spec is spec
    with pytest.raises(PolicyError, match="has no option sped; it has: speed"):
        make(PolicySpec(spec.name, {"sped": 3}, spec.directory))


def test_a_policy_of_an_installed_package(tmp_path: Path, clean_imports: None) -> None:
    (tmp_path / "my_package.py").write_text(MINE)
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mpiflux.policies]\nswift = my_package:Mine\n")
    text = b"policy: swift\njobs: {a: {command: x}}"
    with pytest.raises(WorkflowError, match="'swift' is not known"):
        load("w.yaml", text=text)
    sys.path.insert(0, str(tmp_path))
    assert type(make(load("w.yaml", text=text).policy)).__module__ == "my_package"
    with pytest.raises(PolicyError, match="fcfs, priority, swift"):
        make(PolicySpec("slow"))


@pytest.mark.parametrize("name", ["a.b", "a:b:c", "a:", ":b", "a b:c", "1a:b"])
def test_names_that_are_no_class(name: str) -> None:
    with pytest.raises(WorkflowError, match="is not known"):
        load("w.yaml", text=f"policy: '{name}'\njobs: {{a: {{command: x}}}}".encode())


@pytest.mark.parametrize(("text", "options"), [
    ("{name: fcfs, patience: 2m}", {"patience": 120.0}), ("{name: priority, ageing: 0.5}", {"ageing": 0.5}),
    ("{name: easy, queue_depth: 7}", {"queue_depth": 7}), ("{name: conservative}", {}),
])
def test_options_of_the_workflow_file(text: str, options: dict[str, float]) -> None:
    spec = load("w.yaml", text=f"policy: {text}\njobs: {{a: {{command: x}}}}".encode()).policy
    assert spec.options == options
    make(spec)


# -- the kit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_kit_accepts_ours(name: str) -> None:
    check_policy(KNOWN[name])


def example(name: str) -> type[Policy]:
    found = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.ShortestBackfill  # type: ignore[no-any-return]


def test_the_example_keeps_to_the_contract_and_does_what_it_says(clean_imports: None) -> None:
    mine = example("policy_example")
    check_policy(mine)
    jobs = [TrialJob(0, 10, 10, cores(3)), TrialJob(1, 10, 10, cores(4)),
            *[TrialJob(2, seconds, seconds, cores(1)) for seconds in (7, 3, 2, 5)]]
    assert starts(mine(), jobs, [node(4)]) == [0, 10, 20, 4, 2, 20]
    spec = load(str(EXAMPLES / "policy_example.yaml")).policy
    assert type(make(spec)).__name__ == "ShortestBackfill"


def test_the_documentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (EXAMPLES.parent / "policies.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(block, names)
    names["test_largest_first"]()  # type: ignore[operator]
    assert [tuple(map(float, line.split()[:2])) for line in capsys.readouterr().out.splitlines()] == [
        (1, 0), (2, 10), (0, 10)]
    workflows = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(workflows) == 2
    for workflow in workflows:
        assert load("w.yaml", text=workflow.encode()).groups
    for policy in KNOWN.values():
        assert all(f"`{option}" in text for option in (policy.name, *policy.options))


class Broken(Policy):
    def schedule(self, queue: WorkQueue, machine: Machine, now: float) -> None:
        for entry in queue:
            self.one(queue, machine, entry)

    def one(self, queue: WorkQueue, machine: Machine, entry: object) -> None:
        raise NotImplementedError


class TakesAll(Broken):
    def one(self, queue, machine, entry):  # type: ignore[no-untyped-def]
        machine.start(entry)
        queue.take(entry, len(entry))


class TakesNone(Broken):
    def one(self, queue, machine, entry):  # type: ignore[no-untyped-def]
        machine.start(entry)


class StartsSome(Broken):
    def one(self, queue, machine, entry):  # type: ignore[no-untyped-def]
        if entry.chunk.group % 5:
            queue.take(entry, machine.start(entry))


class Shares(Broken):
    turns = itertools.count()

    def schedule(self, queue, machine, now):  # type: ignore[no-untyped-def]
        entries = list(queue)
        if next(self.turns) % 7 > 2:
            entries.reverse()
        for entry in entries:
            queue.take(entry, machine.start(entry))


class Starves(Broken):
    def one(self, queue, machine, entry):  # type: ignore[no-untyped-def]
        queue.take(entry, machine.start(entry))


class WantsPlaces(Broken):
    def schedule(self, queue, machine, now):  # type: ignore[no-untyped-def]
        plan = planner(machine, now)
        for entry in queue if plan is not None else ():
            queue.take(entry, plan.start(entry))


@pytest.mark.parametrize(("broken", "message"), [
    (TakesAll, "queue.take"), (TakesNone, "queue.take"), (StartsSome, "starts no job although all resources are free"),
    (Shares, "two runs of the same jobs differ"), (Starves, "a stream of small jobs starves it"),
    (WantsPlaces, "above other schedulers"), (dict, "not derived from"),
])
def test_the_kit_finds_what_is_wrong(broken: Callable[[], Policy], message: str) -> None:
    with pytest.raises(PolicyFault, match=message):
        check_policy(broken)


def test_starving_may_be_meant() -> None:
    check_policy(Starves, may_starve=True)
