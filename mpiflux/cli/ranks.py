"""``--ranks``, ``--hosts`` and what goes with them: ranks of ``run``, ``start``, ``doctor`` that no launcher starts."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence

from mpiflux.cli.console import tell
from mpiflux.cli.parser import USAGE, natural, positive
from mpiflux.instance.early import held
from mpiflux.instance.launcher import detect

OURS = ("--ranks", "--hosts", "--rsh", "--restarts")
"""Options that ranks do not see, each with a value."""
_FIRST_ONLY = ("--rerun", "--time-limit")
"""Those that a restart does not repeat as they are."""
_FLAGS = ("--resume", "--rerun-changed")


def define_ranks(add: Callable[..., object], restarts: bool = True) -> None:
    """The options of ``run``, ``start`` and ``doctor`` about ranks that no launcher starts."""
    add("--ranks", metavar="N", type=positive, help="start N ranks on this machine; only where no launcher does")
    add("--hosts", metavar="A,B:N", help="start ranks on these hosts, one on each or N; n[1-4] is n1 to n4")
    add("--rsh", metavar="CMD", help="how to reach the --hosts: CMD HOST COMMAND (default: ssh)")
    if not restarts:
        return
    add("--restarts", metavar="N", type=natural, default=0,
        help="when a rank of --ranks or --hosts is lost, start all again and go on with the run, N times at most")


def starts_ranks(args: Namespace) -> bool:
    """Whether this process starts the ranks, and is none itself. Ends it when the options do not fit the place."""
    launcher = detect(os.environ)
    if args.rsh is not None and args.hosts is None:
        args.parser.error("--rsh says how to reach the --hosts, and none are named")
    if args.restarts:
        if launcher.kind != "none" or (args.ranks is None and args.hosts is None):
            args.parser.error("--restarts is for ranks that mpiflux starts itself: give --ranks N or --hosts A,B too, "
                              "and no launcher")
        if not args.run_dir:
            args.parser.error("--restarts goes on in the run directory: name one by --run-dir DIR")
    if launcher.kind != "none":
        if args.hosts is not None:
            args.parser.error("--hosts under a launcher, which has started the ranks: leave --hosts away")
        if args.ranks is not None and launcher.size not in (None, args.ranks):
            args.parser.error(f"--ranks {args.ranks} under a launcher that started {launcher.size}: leave --ranks away")
        return False
    return args.hosts is not None or (args.ranks or 1) > 1 or args.restarts > 0


def start_ranks(args: Namespace, command: str, options: Sequence[str], rest: Sequence[str] = ()) -> int:
    """Start ``mpiflux COMMAND OPTIONS REST`` as the ranks that ``args`` ask for; the exit status."""
    held.release()
    from mpiflux.instance.hosts import layout
    from mpiflux.instance.restarts import Plan, launch_again
    from mpiflux.instance.selflaunch import one_host, too_many

    def say(text: str) -> None:
        tell(f"mpiflux: {text}")

    def words(resume: bool, left: float) -> list[str]:
        own = without(options, (*OURS, *_FIRST_ONLY), _FLAGS) if resume else without(options, OURS)
        again = ["--resume", *([f"--time-limit={left:.1f}s"] if left else [])] if resume else []
        return [sys.executable, "-m", "mpiflux", command, *again, *own, *rest]

    if args.hosts is not None:
        try:
            places = layout(args.hosts, args.ranks, args.rsh)
        except ValueError as error:
            args.parser.error(f"--hosts {args.hosts}: {error}")
    elif problem := too_many(args.ranks):
        say(problem)
        return USAGE
    else:
        places = one_host(args.ranks)
    return launch_again(Plan(words, places, args.restarts, args.time_limit, args.hosts is None), os.environ, say)


def without(argv: Sequence[str], valued: Collection[str], flags: Collection[str] = ()) -> list[str]:
    """The arguments but for these options: ``valued`` ones with their values, and ``flags``."""
    out: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word in valued:
            skip = True
        elif word not in flags and not word.startswith(tuple(f"{name}=" for name in valued)):
            out.append(word)
    return out
