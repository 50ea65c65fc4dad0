"""``simulate``: how a workflow would run on a machine that is not here, and which policy and hierarchy suit it."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

from mpiflux.cli.console import duration, plural, rate, say, tell
from mpiflux.cli.parser import USAGE, Parser, assignment, natural, positive

if TYPE_CHECKING:
    from mpiflux.sim.compare import Variant
    from mpiflux.sim.statistics import Statistics


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples(
        'mpiflux simulate workflow.yaml --cluster "32x(36c)" --duration default=10s',
        'mpiflux simulate workflow.yaml --cluster "4000x(44c,4g)" --duration "sim=lognormal(1h,0.5)" '
        '--duration default=60 --compare-hierarchy "none;node;node,core" --plot use.png',
        'mpiflux simulate --trace log.swf --cluster "100x(1c)" --hierarchy none --policy "fcfs(queue_depth=1)"')
    add = parser.add_argument
    add("workflow", metavar="WORKFLOW", nargs="?", help="the workflow file; with --trace only its hierarchy and policy "
        "are used, and it may be left away")
    add("--cluster", metavar="SPEC", required=True,
        help='nodes by cores, GPUs, NUMA domains and memory, "2x(8c)+4x(16c,2g,2n,64GiB)", or a YAML file of racks')
    add("--ranks-per-node", metavar="N", type=positive, default=1, help="MPI ranks on each node (default 1)")
    add("--duration", metavar="JOB=SPEC", type=assignment, action="append", default=[], dest="durations",
        help="how long jobs of that name run, default=… those of which the workflow does not say it: 90s, "
             "uniform(5,20), exponential(1m), lognormal(1h,0.5) by median and sigma; repeatable")
    add("--trace", metavar="FILE.swf", help="jobs from a trace in the Standard Workload Format instead")
    add("--set", metavar="NAME=VALUE", type=assignment, action="append", default=[], dest="overrides",
        help="as for run; repeatable")
    add("--hierarchy", metavar="SPEC", help="as for run")
    add("--policy", metavar="NAME", help="as for run, also with options: fcfs(queue_depth=1)")
    add("--compare", metavar="POLICY,POLICY…", help="run once with each of these policies")
    add("--compare-hierarchy", metavar="SPEC;SPEC…", help='run once with each of these trees: "none;node;node,core"')
    add("--seed", metavar="N", type=natural, default=1, help="for the durations (default 1)")
    add("--costs", metavar="FILE", help="what the runtime's own work costs, from tests/benchmarks/calibrate.py; "
        "none: nothing (default: measured on one machine of ours)")
    add("--plot", metavar="FILE", help="draw utilisation over time: .png, .pdf or .svg")
    add("--json", action="store_true", help="print all numbers as JSON")
    return simulate


def simulate(args: Namespace) -> int:
    from mpiflux.sim.compare import CannotSimulate, best
    from mpiflux.sim.compare import simulate as run
    from mpiflux.sim.durations import DurationError
    from mpiflux.sim.machine import ClusterError, build, cluster_consumables, parse_cluster
    from mpiflux.sim.swf import TraceError
    from mpiflux.spec import WorkflowError

    try:
        if args.plot is not None:
            _check_plot(args.plot)
        machine = build(parse_cluster(args.cluster), args.ranks_per_node, cluster_consumables(args.cluster))
        workflow, behaviour, arrivals = _workload(args)
        variants = _variants(args, workflow)
        costs = _costs(args.costs)
        found = [run(variant, machine, workflow, behaviour, costs, arrivals) for variant in variants]
    except (CannotSimulate, DurationError, ClusterError, TraceError, WorkflowError, ArgumentTypeError) as error:
        tell(f"mpiflux: simulate: {error}" if not isinstance(error, WorkflowError) else str(error))
        return USAGE
    winner = best(found)
    if args.json:
        say(json.dumps({"cluster": {"nodes": len(machine.nodes), "cores": machine.cores, "gpus": machine.gpus},
                        "seed": args.seed, "best": winner.name, "runs": [one.as_dict() for one in found]}, indent=1))
    else:
        say(f"{plural(len(machine.nodes), 'node')}, {plural(machine.cores, 'core')}, {plural(machine.gpus, 'GPU')}; "
            f"{plural(found[0].jobs, 'job')}; seed {args.seed}; times are virtual")
        _show(found)
        if len(found) > 1:
            say(f"\nbest: {winner.name}, done after {_time(winner.makespan)}")
    return 0 if args.plot is None else _plot(found, args.plot)


def _workload(args: Namespace) -> tuple[Any, Any, Any]:
    """Workflow, durations, arrivals."""
    import msgspec

    from mpiflux.model.jobspec import Workflow
    from mpiflux.sim.compare import CannotSimulate, parse_policy
    from mpiflux.sim.durations import Durations, parse_distribution
    from mpiflux.sim.swf import read_trace
    from mpiflux.spec import load, load_hierarchy

    if args.workflow is None and args.trace is None:
        raise CannotSimulate("name a workflow file, or a trace by --trace")
    workflow = Workflow(name="trace")
    if args.workflow is not None:
        workflow = load(args.workflow, overrides=dict(args.overrides))
    if args.hierarchy is not None:
        workflow = msgspec.structs.replace(workflow, hierarchy=load_hierarchy(args.hierarchy))
    if args.policy is not None:
        workflow = msgspec.structs.replace(workflow, policy=parse_policy(args.policy, workflow.directory))
    if args.trace is None:
        given = {name: parse_distribution(text) for name, text in args.durations}
        durations = Durations(workflow.groups, given, args.seed)
        if durations.guessed:
            tell(f"nothing says how long jobs of {', '.join(durations.guessed)} run: taken as their time limits")
        return workflow, durations, ()
    if args.durations:
        raise CannotSimulate("--duration beside --trace: the trace says how long its jobs ran")
    try:
        trace = read_trace(args.trace)
    except OSError as error:
        raise CannotSimulate(f"{args.trace}: {error.strerror}") from None
    if trace.skipped:
        tell(f"{args.trace}: {plural(trace.skipped, 'job')} never ran and left out")
    groups, arrivals, behaviour = trace.workload()
    return msgspec.structs.replace(workflow, groups=groups), behaviour, arrivals


def _variants(args: Namespace, workflow: Any) -> list[Variant]:
    from mpiflux.sim.compare import CannotSimulate, Variant, parse_policy, split_outside
    from mpiflux.spec import load_hierarchy

    trees = [(text, load_hierarchy(text)) for text in split_outside(args.compare_hierarchy or "", ";")]
    policies = [(text, parse_policy(text, workflow.directory)) for text in split_outside(args.compare or "", ",")]
    if (args.compare is not None and not policies) or (args.compare_hierarchy is not None and not trees):
        raise CannotSimulate("nothing to compare: --compare takes policies, --compare-hierarchy trees")
    variants = [Variant(" ".join(part for part in (tree, policy) if part), shape, spec)
                for (tree, shape), (policy, spec) in product(trees or [("", workflow.hierarchy)],
                                                             policies or [("", workflow.policy)])]
    if len(variants) == 1 and not variants[0].name:
        return [Variant(variants[0].policy.name, workflow.hierarchy, workflow.policy)]
    return variants


def _costs(path: str | None) -> Any:
    from mpiflux.sim.compare import CannotSimulate
    from mpiflux.sim.costs import DEFAULT, Costs, load_costs

    if path == "none":
        return Costs(commit=0.0)
    try:
        return load_costs(path or DEFAULT)
    except OSError as error:
        raise CannotSimulate(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise CannotSimulate(str(error)) from None


def _show(found: list[Statistics]) -> None:
    rows = [["", *(one.name for one in found)]]

    def row(title: str, of: Callable[[Statistics], str]) -> None:
        rows.append([title, *(of(one) for one in found)])

    row("makespan", lambda one: _time(one.makespan))
    row("jobs per second", lambda one: rate(one.rate))
    row("wait: mean", lambda one: _time(one.wait_mean))
    row("wait: median", lambda one: _time(one.wait_p50))
    row("wait: 99th percentile", lambda one: _time(one.wait_p99))
    row("bounded slowdown: mean", lambda one: f"{one.slowdown_mean:.2f}")
    row("bounded slowdown: 99th p.", lambda one: f"{one.slowdown_p99:.2f}")
    for resource in dict.fromkeys(name for one in found for name in one.utilisation):
        rows.append([f"{resource} in use: mean", *(f"{100 * one.utilisation.get(resource, 0):.1f} %" for one in found)])
        rows.append(["  over time", *(_spark(one.curves.get(resource)) for one in found)])
    for depth in range(max(len(one.levels) for one in found)):
        here = [one.levels[depth] if depth < len(one.levels) else None for one in found]
        rows.append([f"level {depth}: schedulers", *(f"{level.schedulers:,}" if level else "-" for level in here)])
        rows.append(["  busiest one is busy", *(f"{100 * level.busiest / (one.makespan or 1):.2f} %" if level else "-"
                                                for one, level in zip(found, here, strict=True))])
    for part in found[0].parts:
        rows.append([f"{part} is busy", *(f"{100 * one.parts.get(part, 0):.2f} %" for one in found)])
    row("jobs not completed", lambda one: f"{one.jobs - one.completed:,}")
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    say("\n".join("  ".join([cells[0].ljust(widths[0]),
                             *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]).rstrip()
                  for cells in rows))


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}ms" if 0 < seconds < 0.1 else duration(seconds)


def _spark(curve: Any, width: int = 24) -> str:
    """A line of blocks, each the mean of its part of the run."""
    if curve is None or not len(curve):
        return "-"
    parts = [curve[len(curve) * i // width:len(curve) * (i + 1) // width].mean() for i in range(width)]
    return "".join("▁▂▃▄▅▆▇█"[min(int(part * 8), 7)] if part > 0.001 else " " for part in parts)


def _check_plot(path: str) -> None:
    """Raises CannotSimulate where a picture could not be drawn: better than after hours of simulation."""
    from mpiflux.sim.compare import CannotSimulate
    from mpiflux.sim.plot import check_target

    try:
        check_target(path)
    except ImportError:
        raise CannotSimulate("--plot needs Matplotlib: install mpiflux[plot]") from None
    except ValueError as error:
        raise CannotSimulate(f"--plot {path}: {error}") from None


def _plot(found: list[Statistics], path: str) -> int:
    from mpiflux.sim.plot import plot_utilisation

    try:
        plot_utilisation(found, path)
    except (OSError, ValueError) as error:
        tell(f"mpiflux: simulate: cannot draw {path}: {error}")
        return 1
    tell(f"drew {path}")
    return 0
