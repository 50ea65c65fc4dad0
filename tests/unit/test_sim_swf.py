"""Traces in the Standard Workload Format: read strictly, and run as they say."""

from __future__ import annotations

import pytest

from mpiflux.model.jobspec import HierarchySpec, PolicySpec
from mpiflux.sim.compare import Variant, simulate
from mpiflux.sim.costs import Costs
from mpiflux.sim.machine import build, parse_cluster
from mpiflux.sim.swf import TraceError, parse_trace
from mpiflux.spec import load

#     num submit wait run procs cpu mem rprocs rtime rmem status uid gid exe queue part prev think
LINES = """\
; Version: 2.2
; Computer: made by hand
;
  1      0   -1  100    2  -1  -1      2   120   -1      1   1   1  -1     1    1   -1    -1
  2     10   -1   50    4  -1  -1     -1    -1   -1      1   2   1  -1     1    1   -1    -1

  3     10   -1   -1    0  -1  -1      4    60   -1      5   2   1  -1     1    1   -1    -1
  4     20    0   10    1 0.5  -1      2     5   -1      0   1   1  -1     1    1   -1    -1
""".splitlines(keepends=True)


def test_a_trace_is_read() -> None:
    trace = parse_trace(LINES, "x.swf")
    assert [(job.number, job.submit, job.seconds, job.processors, job.limit) for job in trace.jobs] == [
        (1, 0, 100, 2, 120),
        (2, 10, 50, 4, 50),  # nothing was requested: what it got
        (4, 20, 10, 2, 10),  # it ran for longer than it had asked for
    ]
    assert trace.skipped == 1


@pytest.mark.parametrize(("line", "word"), [
    ("1 0 -1 100 2 -1 -1 2 120 -1 1 1 1 -1 1 1 -1", "x.swf:1: 17 fields"),
    ("1 0 -1 100 2 -1 -1 2 120 -1 1 1 1 -1 1 1 -1 -1 -1", "x.swf:1: 19 fields"),
    ("1 0 -1 abc 2 -1 -1 2 120 -1 1 1 1 -1 1 1 -1 -1", "field 4 is 'abc'"),
    ("1 0 -1 nan 2 -1 -1 2 120 -1 1 1 1 -1 1 1 -1 -1", "field 4 is nan"),
    ("1 0 -1 -2 2 -1 -1 2 120 -1 1 1 1 -1 1 1 -1 -1", "field 4 is -2"),
    ("1 0 -1 10 2.5 -1 -1 2 120 -1 1 1 1 -1 1 1 -1 -1", "field 5, the allocated processors, is 2.5"),
    ("0 0 -1 10 2 -1 -1 2 120 -1 1 1 1 -1 1 1 -1 -1", "number from 1 on"),
    ("1 -1 -1 10 2 -1 -1 2 120 -1 1 1 1 -1 1 1 -1 -1", "submit time from 0 on"),
    ("1 0 -1 -1 2 -1 -1 2 120 -1 1 1 1 -1 1 1 -1 -1", "no job that ran"),
    ("; only a comment", "no job that ran"),
])
def test_what_is_no_trace_is_told(line: str, word: str) -> None:
    with pytest.raises(TraceError, match=word):
        parse_trace([line], "x.swf")


def test_order_and_numbers_are_checked() -> None:
    with pytest.raises(TraceError, match=r"x.swf:2: job number 1 is there twice"):
        parse_trace([LINES[3], LINES[3]], "x.swf")
    with pytest.raises(TraceError, match=r"x.swf:2: job 1 is submitted at 0, before the job above it"):
        parse_trace([LINES[4], LINES[3]], "x.swf")


def test_jobs_arrive_when_the_trace_says_and_run_as_long() -> None:
    trace = parse_trace(LINES, "x.swf")
    groups, arrivals, behaviour = trace.workload()
    assert [(when, chunk.group) for when, chunk in arrivals] == [(0, 0), (10, 1), (20, 2)]
    workflow = load("trace.yaml", text=b"jobs: {a: {command: x}}")
    import msgspec

    workflow = msgspec.structs.replace(workflow, groups=groups)
    variant = Variant("fcfs", HierarchySpec(levels=()), PolicySpec("fcfs", {"queue_depth": 1}))
    found = simulate(variant, build(parse_cluster("1x(4c)")), workflow, behaviour, Costs(commit=0.0), arrivals)
    # by hand: 1 runs 0-100 on two cores; 2 wants all four and waits to 100, runs to 150; 4 comes behind it in line
    assert found.makespan == pytest.approx(160, abs=0.1)
    assert sorted(found.waits.tolist()) == pytest.approx([0, 90, 130], abs=0.1)
    assert found.utilisation["cores"] == pytest.approx((2 * 100 + 4 * 50 + 2 * 10) / (4 * 160), rel=1e-3)
    # bounded slowdowns: 100/100, 140/50, 140/10
    assert found.slowdown_mean == pytest.approx((1 + 2.8 + 14) / 3, rel=1e-2)
