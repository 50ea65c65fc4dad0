"""``run``: options in, exit status out. Every rank comes through here, so this loads little."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpiflux.cli.console import tell
from mpiflux.cli.parser import Parser, assignment, declared, declared_cores, seconds, size, timeout
from mpiflux.cli.ranks import define_ranks, start_ranks, starts_ranks
from mpiflux.instance.options import RunObserver, RunOptions

if TYPE_CHECKING:
    from mpiflux.cli.progress import Printer


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples(
        "mpiexec -n 4 mpiflux run workflow.yaml --run-dir runs/first",
        "srun -N32 mpiflux run workflow.yaml --hierarchy node,core --set samples=2000",
        "mpiflux run workflow.yaml --ranks 4 --dry-run",
        "mpiflux run workflow.yaml --run-dir runs/first --resume --rerun failed,timeout")
    add = parser.add_argument
    add("workflow", metavar="WORKFLOW", help="the workflow file, YAML or JSON")
    add("--run-dir", metavar="DIR", help="directory for the run's results (default: mpiflux-run-NAME-TIME here)")
    add("--resume", action="store_true", help="go on with the run in --run-dir; jobs that ended do not run again")
    add("--rerun", metavar="LIST", help="with --resume: ended jobs that run again, a comma list of results (failed, "
        "timeout, canceled, completed), names and ids (sim, sim[0-9], 12)")
    add("--rerun-changed", action="store_true",
        help="with --resume: jobs too that ended before the workflow file changed their entry")
    add("--set", metavar="NAME=VALUE", type=assignment, action="append", default=[], dest="overrides",
        help="set a variable of the workflow, or one of its keys by dotted path; repeatable")
    define_tree(add)
    add("--dry-run", action="store_true", help="show jobs, tree and what cannot fit; start nothing")
    add("--progress", choices=("auto", "bar", "plain", "none"), default="auto",
        help="how to show progress (default: a bar on a terminal, else plain lines)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--keep-going", action="store_true", help="go on when a job fails (the default)")
    group.add_argument("--fail-fast", action="store_true", help="cancel the rest when a job fails")
    add("--time-limit", metavar="DURATION", type=seconds, default=0.0,
        help="end the run after this long, resumable: 90s, 10m, 1h30m (default: no limit)")
    define_machine(add)
    add("--exec", choices=("null",), help="null: schedule everything, start nothing")
    define_store(add)
    return run


def define_tree(add: Callable[..., object]) -> None:
    """``--hierarchy``, ``--policy``, and ``--ranks`` with what belongs to it."""
    add("--hierarchy", metavar="SPEC",
        help="the tree: levels (node,core), widths (4x8), none, a YAML or JSON file, or inline YAML or JSON")
    add("--policy", metavar="NAME", help="the schedulers' policy")
    define_ranks(add)


def define_machine(add: Callable[..., object]) -> None:
    """``--rank-timeout``, ``--cores-per-node`` and ``--gpus-per-node``."""
    add("--rank-timeout", metavar="DURATION", type=timeout, default=60.0,
        help="go on without a rank that gives no sign of life for this long (default 60s, at least 1s)")
    add("--cores-per-node", metavar="N", type=declared_cores,
        help="use N cores of each node; more than there are are pretended, and jobs not bound to them")
    add("--gpus-per-node", metavar="N", type=declared, help="the same for GPUs")


def define_store(add: Callable[..., object]) -> None:
    """``--sync`` and ``--kvs-limit``."""
    add("--sync", metavar="SECONDS", type=seconds, default=0.05,
        help="finished work that a kill may cost, in seconds (default 0.05)")
    add("--kvs-limit", metavar="SIZE", type=size, default=RunOptions.kvs_limit,
        help="memory for keys and values of the KVS (default 1GiB)")


def run(args: Namespace) -> int:
    if starts_ranks(args):
        return start_ranks(args, "run", args.parser.argv)
    from mpiflux.instance.bootstrap import run_instance

    options = options_of(args)

    printers: list[Printer] = []

    def observer() -> RunObserver:
        from mpiflux.cli.progress import Printer

        printers.append(Printer(options, args.progress))
        return printers[-1]

    status = run_instance(options, observer, lambda text: tell(f"mpiflux: {text}"))
    # a run's status is that of its jobs, whoever reads its summary
    return status or int(options.dry_run and any(printer.unwritten for printer in printers))


def begun_before(run_dir: str | None) -> bool:
    """Whether this is a job of another instance that an earlier attempt has begun: it goes on with that one's run."""
    attempt = os.environ.get("MPIFLUX_ATTEMPT", "")
    return run_dir is not None and attempt.isdecimal() and int(attempt) > 1


def options_of(args: Namespace) -> RunOptions:
    from mpiflux.cli.rundir import split

    return RunOptions(
        workflow=args.workflow, run_dir=args.run_dir, resume=args.resume or begun_before(args.run_dir),
        rerun=tuple(split(args.rerun)) if args.rerun else (), rerun_changed=args.rerun_changed,
        hierarchy=args.hierarchy,
        policy=args.policy, overrides=dict(args.overrides), dry_run=args.dry_run, fail_fast=args.fail_fast,
        time_limit=args.time_limit, cores_per_node=args.cores_per_node, gpus_per_node=args.gpus_per_node,
        null_exec=args.exec == "null", sync_window=args.sync,
        rank_timeout=args.rank_timeout, kvs_limit=args.kvs_limit)
