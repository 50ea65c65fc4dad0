"""``start``: an instance for a program. Every rank comes through here, so this loads little."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

from mpiflux.cli.console import tell
from mpiflux.cli.parser import Parser, seconds
from mpiflux.cli.ranks import start_ranks, starts_ranks
from mpiflux.cli.run import begun_before, define_machine, define_store, define_tree
from mpiflux.instance.options import RunObserver, RunOptions


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples(
        "srun -N32 mpiflux start -- python steer.py",
        "mpiexec -n 4 mpiflux start --run-dir runs/steered -- ./manager.sh",
        "mpiflux start --ranks 2 bash")
    parser.remainder = "command"
    add = parser.add_argument
    add("command", metavar="COMMAND", nargs="+", help="the initial program; when it ends, so does the instance")
    add("--run-dir", metavar="DIR", help="directory for what happens (default: mpiflux-run-start-TIME here)")
    add("--resume", action="store_true", help="go on in --run-dir: its jobs that did not end run again")
    define_tree(add)
    add("--progress", choices=("auto", "bar", "plain", "none"), default="none",
        help="how to show progress (default: not at all, the terminal is the program's)")
    add("--time-limit", metavar="DURATION", type=seconds, default=0.0,
        help="end it after this long: 90s, 10m, 1h30m (default: no limit)")
    define_machine(add)
    define_store(add)
    return start


def start(args: Namespace) -> int:
    if starts_ranks(args):
        options = args.parser.argv[:len(args.parser.argv) - len(args.command)]
        return start_ranks(args, "start", [word for word in options if word != "--"], ["--", *args.command])
    from mpiflux.instance.bootstrap import run_instance

    options = options_of(args)

    def observer() -> RunObserver:
        from mpiflux.cli.progress import Printer

        return Printer(options, args.progress)

    return run_instance(options, observer, lambda text: tell(f"mpiflux: {text}"))


def options_of(args: Namespace) -> RunOptions:
    return RunOptions(
        workflow="", initial_program=tuple(args.command), run_dir=args.run_dir,
        resume=args.resume or begun_before(args.run_dir), hierarchy=args.hierarchy, policy=args.policy,
        time_limit=args.time_limit, cores_per_node=args.cores_per_node, gpus_per_node=args.gpus_per_node,
        sync_window=args.sync, rank_timeout=args.rank_timeout, kvs_limit=args.kvs_limit)
