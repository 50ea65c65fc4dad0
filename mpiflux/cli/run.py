"""``run``: options in, exit status out. Every rank comes through here, so this loads little."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpiflux.cli.console import tell
from mpiflux.cli.parser import Parser, assignment, declared, declared_cores, positive, seconds
from mpiflux.instance.launcher import detect
from mpiflux.instance.options import RunObserver, RunOptions

if TYPE_CHECKING:
    from mpiflux.cli.progress import Printer


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples(
        "mpiexec -n 4 mpiflux run workflow.yaml --run-dir runs/first",
        "srun -N32 mpiflux run workflow.yaml --hierarchy node,core --set samples=2000",
        "mpiflux run workflow.yaml --ranks 4 --dry-run",
        "mpiflux run workflow.yaml --run-dir runs/first --resume")
    add = parser.add_argument
    add("workflow", metavar="WORKFLOW", help="the workflow file, YAML or JSON")
    add("--run-dir", metavar="DIR", help="directory for the run's results (default: mpiflux-run-NAME-TIME here)")
    add("--resume", action="store_true", help="go on with the run in --run-dir; jobs that ended do not run again")
    add("--set", metavar="NAME=VALUE", type=assignment, action="append", default=[], dest="overrides",
        help="set a variable of the workflow, or one of its keys by dotted path; repeatable")
    add("--hierarchy", metavar="SPEC",
        help="the tree: levels (node,core), widths (4x8), none, a YAML or JSON file, or inline YAML or JSON")
    add("--policy", metavar="NAME", help="the schedulers' policy")
    add("--ranks", metavar="N", type=positive, help="start N ranks on this machine; only where no launcher does")
    add("--dry-run", action="store_true", help="show jobs, tree and what cannot fit; start nothing")
    add("--progress", choices=("auto", "bar", "plain", "none"), default="auto",
        help="how to show progress (default: a bar on a terminal, else plain lines)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--keep-going", action="store_true", help="go on when a job fails (the default)")
    group.add_argument("--fail-fast", action="store_true", help="cancel the rest when a job fails")
    add("--time-limit", metavar="DURATION", type=seconds, default=0.0,
        help="end the run after this long, resumable: 90s, 10m, 1h30m (default: no limit)")
    add("--cores-per-node", metavar="N", type=declared_cores,
        help="use N cores of each node; more than there are are pretended, and jobs not bound to them")
    add("--gpus-per-node", metavar="N", type=declared, help="the same for GPUs")
    add("--exec", choices=("null",), help="null: schedule everything, start nothing")
    add("--sync", metavar="SECONDS", type=seconds, default=0.05,
        help="finished work that a kill may cost, in seconds (default 0.05)")
    return run


def run(args: Namespace) -> int:
    launcher = detect(os.environ)
    if args.ranks is not None and launcher.kind != "none" and launcher.size not in (None, args.ranks):
        args.parser.error(f"--ranks {args.ranks} under a launcher that started {launcher.size}: leave --ranks away")
    if args.ranks is not None and args.ranks > 1 and launcher.kind == "none":
        from mpiflux.instance.selflaunch import launch

        command = [sys.executable, "-m", "mpiflux", "run", *without_ranks(args.parser.argv)]
        return launch(command, args.ranks, os.environ, lambda text: tell(f"mpiflux: {text}"))
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


def without_ranks(argv: list[str]) -> list[str]:
    """The arguments for each of the ranks that ``--ranks`` starts."""
    out: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word == "--ranks":
            skip = True
        elif not word.startswith("--ranks="):
            out.append(word)
    return out


def options_of(args: Namespace) -> RunOptions:
    return RunOptions(
        workflow=args.workflow, run_dir=args.run_dir, resume=args.resume, hierarchy=args.hierarchy,
        policy=args.policy, overrides=dict(args.overrides), dry_run=args.dry_run, fail_fast=args.fail_fast,
        time_limit=args.time_limit, cores_per_node=args.cores_per_node, gpus_per_node=args.gpus_per_node,
        null_exec=args.exec == "null", sync_window=args.sync)
