"""``doctor``: what mpiflux finds where it is started, and what looks wrong with what mends it."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from mpiflux.cli.console import say, tell
from mpiflux.cli.parser import Parser
from mpiflux.cli.ranks import define_ranks, start_ranks, starts_ranks


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples("mpiflux doctor", "srun -N32 mpiflux doctor --run-dir /scratch/me/run",
                    "mpiexec -n 4 mpiflux doctor --json", "mpiflux doctor --hosts node[1-4]")
    parser.add_argument("--run-dir", metavar="DIR", default=".",
                        help="where a run directory would be made (default: the current directory)")
    define_ranks(parser.add_argument, restarts=False)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(restarts=0, time_limit=0.0)
    parser.once = True
    return doctor


def doctor(args: Namespace) -> int:
    """Exit status 0 when nothing looks wrong, 1 when something does. Every rank comes here; rank 0 speaks."""
    if starts_ranks(args):
        return start_ranks(args, "doctor", args.parser.argv)
    from mpiflux.instance.health import examine

    def show(found: dict[str, Any]) -> None:
        if args.json:
            say(json.dumps(found))
            return
        _show(found, found["rank"])
        for text in found["problems"]:
            tell(f"mpiflux: {text}")

    return examine(args.run_dir, show)


def _show(answer: dict[str, Any], everyone: list[dict[str, Any]]) -> None:
    from mpiflux.model import hostlist
    from mpiflux.model.resources import size

    started = {"none": "none: this process alone"}.get(answer["launcher"], answer["launcher"])
    rows = [("launcher", started), ("ranks", f"{answer['ranks']} on {answer['nodes']} node(s)"),
            ("MPI", f"{answer['mpi']}, mpi4py {answer['mpi4py']}" if answer["mpi"] else "none"),
            ("run directory", f"{answer['run_dir']} on {answer['file_system']} ({answer['mounted_on']}), "
                              f"{size(answer['bytes_free'])} free")]
    if answer["job_end_time"]:
        rows.append(("ends at", time.strftime("%F %T", time.localtime(answer["job_end_time"]))))
    alike: dict[str, list[str]] = {}
    for one in everyone:
        gpus = f"{len(one['gpus'])} GPUs{': ' + ', '.join(one['gpus']) if one['gpus'] else ''}"
        text = (f"{one['cores']} cores ({one['cpus']} of {one['cpus_of_machine']} CPUs, affinity {one['affinity']}), "
                f"{gpus}, {size(one['memory'])}, "
                f"ulimit -n {_shown(one['open_files'])} -u {_shown(one['processes'])}")
        alike.setdefault(text, []).append(one["node"])
    for text, nodes in alike.items():
        names = list(dict.fromkeys(nodes))
        ranks = f", {len(nodes)} ranks" if len(nodes) > len(names) else ""
        rows.append((hostlist.encode(names) + ranks, text))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        say(f"{name:<{width}}  {text}")


def _shown(limit: list[int | None]) -> str:
    soft, hard = ("none" if value is None else str(value) for value in limit)
    return soft if soft == hard else f"{soft} (up to {hard})"
