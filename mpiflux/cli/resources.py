"""``resources`` and ``tree``: what a run has, and how its schedulers share it."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mpiflux.cli.console import colourful, paint, plural, say
from mpiflux.cli.parser import Parser
from mpiflux.cli.rundir import add_directory, answered, reading
from mpiflux.cli.summary import host_list

if TYPE_CHECKING:
    from mpiflux.store.reader import RunReader

_RUN = 3


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples(f"mpiflux {name} runs/first", f"mpiflux {name} runs/first --json")
    add_directory(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    if name == "tree":
        parser.add_argument("-R", "--recursive", action="store_true", help="also the instances inside its jobs")
    return lambda args: answered(args, resources if name == "resources" else tree)


def resources(args: Namespace) -> None:
    with reading(args) as reader:
        meta, live = reader.meta, reader.state == "running"
        nodes = owned(reader, live)
        consumables = named(reader, nodes, live)
    if args.json:
        keys = ("ranks", "schedulers", "cores", "gpus", "lost")
        say(json.dumps({**{key: meta.get(key) for key in keys}, "consumables": consumables,
                        "nodes": nodes}))
        return
    say(f"{plural(len(nodes), 'node')}, {plural(meta.get('cores', 0), 'core')}, {plural(meta.get('gpus', 0), 'GPU')}, "
        f"{plural(meta.get('ranks', 1), 'rank')}, {plural(meta.get('schedulers', 1), 'scheduler')}")
    say_lost(meta)
    head = ["NODES", "CORES", "GPUS", "MEMORY"] + (["CORES BUSY", "GPUS BUSY"] if live else [])
    print_table([head, *alike(nodes, live)])
    if consumables:
        print_table([["NAMED", "OF", "THERE ARE", *(["IN USE"] if live else [])],
                     *([name, one["of"], f"{one['total']:,}", *([f"{one['in_use']:,}"] if live else [])]
                       for name, one in consumables.items())])


def say_lost(meta: Mapping[str, Any]) -> None:
    """Ranks that were lost while the run went on, and with them what is not among its resources any more."""
    lost = meta.get("lost") or []
    if lost:
        all_of_them = meta.get("ranks", 0) + len(lost)
        which = ", ".join(f"rank {one['rank']} on {one['node']} ({one['how']})" for one in lost)
        say(f"{len(lost)} of {all_of_them} ranks lost: {which}")


def named(reader: RunReader, nodes: list[dict[str, Any]], live: bool) -> dict[str, dict[str, Any]]:
    """Named resources: whose, how much there is in all, and of a live run how much its running jobs have."""
    from mpiflux.model.states import State

    found = {name: {"of": "the instance", "total": amount}
             for name, amount in (reader.meta.get("consumables") or {}).items()}
    for node in nodes:
        for name, amount in (node.get("consumables") or {}).items():
            one = found.setdefault(name, {"of": "the nodes", "total": 0})
            one["total"] += amount
    if live and found:
        for one in found.values():
            one["in_use"] = 0
        for job in reader.jobs(states=[State.RUN]):
            asked = reader.jobspec(job["id"])["resources"]
            for name, one in found.items():
                one["in_use"] += asked.get(name, 0)
    return found


def owned(reader: RunReader, live: bool) -> list[dict[str, Any]]:
    """What the run directory says of each node; of a live run also which cores and GPUs its running jobs hold."""
    from mpiflux.model import idset
    from mpiflux.model.states import State

    nodes = [dict(node) for node in reader.meta.get("resources", [])]
    if not live:
        return nodes
    busy: dict[str, tuple[set[int], set[int]]] = {node["node"]: (set(), set()) for node in nodes}
    for job in reader.jobs(states=[State.RUN]):
        for i, host in enumerate(job["nodes"]):
            for held, key in zip(busy.get(host, (set(), set())), ("cores", "gpus"), strict=True):
                ids = job[key] if isinstance(job[key], str) else job[key][i]
                held.update(idset.decode(ids))
    for node in nodes:
        node["cores_busy"], node["gpus_busy"] = (idset.encode(ids) for ids in busy[node["node"]])
    return nodes


def alike(nodes: list[dict[str, Any]], live: bool) -> list[list[str]]:
    """A row for all nodes that have the same, with host names as a hostlist."""
    from mpiflux.model import idset
    from mpiflux.model.resources import size

    groups: dict[tuple[str, ...], list[str]] = {}
    for node in nodes:
        cells = [node["cores"] or "-", node["gpus"] or "-", size(node["memory"]) if node["memory"] else "-"]
        if live:
            cells += [str(len(idset.decode(node[key]))) for key in ("cores_busy", "gpus_busy")]
        groups.setdefault(tuple(cells), []).append(node["node"])
    return [[host_list(names), *cells] for cells, names in groups.items()]


def print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    colours = colourful(sys.stdout)
    for number, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        say(paint(line, "bold", colours and number == 0))


def tree(args: Namespace) -> None:
    with reading(args) as reader:
        if args.json:
            say(json.dumps(tree_facts(reader, args.recursive)))
            return
        say(reader.meta.get("plan") or "this run has not said what its tree is")
        say_lost(reader.meta)
        if args.recursive:
            show_inner(reader)


def tree_facts(reader: RunReader, recursive: bool, path: str = "") -> dict[str, Any]:
    """The tree for programs; with ``recursive`` also ``instances``, each with its own tree or the ``error``."""
    from mpiflux.cli.nested import DEEPEST, inner, opened

    meta = reader.meta
    facts: dict[str, Any] = {"schedulers": meta.get("schedulers"), "ranks": meta.get("ranks"),
                             "nodes": meta.get("nodes"), "tree": meta.get("tree"), "text": meta.get("plan", "")}
    if recursive and path.count("/") < DEEPEST:
        facts["instances"] = []
        for one in inner(reader, path):
            with opened(one) as below:
                more = {"error": below} if isinstance(below, str) else {
                    "state": below.state, **tree_facts(below, True, one.path)}
            facts["instances"].append({"path": one.path, **one.facts, **more})
    return facts


def show_inner(reader: RunReader) -> None:
    from mpiflux.cli.nested import walk

    for one, below in walk(reader):
        margin = "  " * (one.path.count("/") + 1)
        say(f"{margin}job {one.title(below)}")
        text = f"cannot be read from here: {below}" if isinstance(below, str) else below.meta.get("plan") or ""
        for line in text.splitlines():
            say(f"{margin}  {line}")
