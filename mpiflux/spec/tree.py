"""Hierarchies and policies."""

from __future__ import annotations

import itertools
import re

from mpiflux.model.jobspec import HierarchySpec, LevelSpec, NestedSpec, PolicySpec
from mpiflux.spec.nodes import Node
from mpiflux.spec.problems import shorten
from mpiflux.spec.reader import Fields, Reader
from mpiflux.spec.scalars import resolve

POLICIES: dict[str, tuple[str, ...]] = {
    "fcfs": ("queue_depth", "patience"),
    "easy": ("queue_depth",),
    "conservative": ("queue_depth",),
    "priority": ("queue_depth", "patience", "ageing"),
}
"""Policy name to its options. A user's own takes what it declares, which shows when it is made."""
_LONGEST = 1e9
_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

DISTRIBUTIONS = ("by_key", "least_loaded", "pull", "round_robin")
"""Besides ``by_key:PARAMETER`` and a user's own as ``module:Class``."""
RESOURCE_LEVELS = ("node", "numa", "core")
"""From coarse to fine."""

MAX_SCHEDULERS = 1_000_000
MAX_LEVELS = 16

_WIDTHS = re.compile(r"\d{1,7}(?:x\d{1,7})*", re.ASCII)


def read_policy(reader: Reader, node: Node | None, path: str) -> PolicySpec | None:
    """``fcfs``, or a mapping of ``name`` and options; None when absent or wrong."""
    if node is None:
        return None
    options: dict[str, int | float | str | bool] = {}
    if node.kind == "scalar":
        name_node, name_path = node, path
        name = reader.text(node, path, "", "the name of a policy")
    else:
        fields = reader.fields(node, path, (), "policy", open_ended=True)
        if fields is None:
            return None
        found, name_path = fields.get("name")
        if found is None:
            reader.problem(node, path, f"policy: needs a 'name'; known policies: {', '.join(POLICIES)}")
            return None
        name_node = found
        name = reader.text(name_node, name_path, "", "the name of a policy")
        options = _policy_options(reader, fields, name)
    if not name:
        return None
    if (mistake := unknown_policy(reader, name)) is not None:
        reader.problem(name_node, name_path, f"policy: {mistake}")
        return None
    reader.remember(f"policy {name}", name_node)
    return PolicySpec(name, options, reader.directory if name not in POLICIES else "")


def unknown_policy(reader: Reader, name: str) -> str | None:
    """What is wrong with the name of a policy; None: it is known, or may be a user's own."""
    if name in POLICIES or _OWN.fullmatch(name) or name in reader.installed_policies:
        return None
    known = [*POLICIES, *reader.installed_policies]
    return (f"{shorten(name)} is not known{reader.problems.suggest(name, known)}; known policies: {', '.join(known)}, "
            "or your own as package.module:Class")


def _policy_options(reader: Reader, fields: Fields, name: str) -> dict[str, int | float | str | bool]:
    options: dict[str, int | float | str | bool] = {}
    known = POLICIES.get(name)
    for option, (key, value) in fields.node.entries.items():
        path = f"{fields.path}.{option}"
        if option == "name":
            continue
        if known is not None and option not in known:
            hint = reader.problems.suggest(option, known) or f"; it takes {', '.join(known) if known else 'none'}"
            reader.problem(key, path, f"policy {name} has no option {shorten(option)}{hint}")
            continue
        if option == "queue_depth":
            options[option] = reader.integer(value, path, 1, 1, 1 << 31)
            continue
        if known is not None and option == "patience":
            options[option] = reader.duration(value, path, 0.0, _LONGEST)
            continue
        if known is not None and option == "ageing":
            points = reader.real(value, path, 0.0)
            if points is not None and not 0 <= points < _LONGEST:
                reader.problem(value, path, f"ageing: points of urgency for each hour, at least 0, not {points:g}")
            options[option] = points or 0.0
            continue
        scalar = reader.scalar(value, path, "a single value")
        if scalar is None:
            continue
        try:
            options[option] = resolve(scalar.text) if scalar.plain else scalar.text
        except ValueError as error:
            reader.problem(value, path, f"{option}: {scalar.describe()} is {error}")
    return options


def read_hierarchy(reader: Reader, node: Node | None, path: str) -> HierarchySpec | None:
    """Any of the shapes; None when absent or wrong."""
    if node is None:
        return None
    if node.kind == "scalar":
        scalar = reader.scalar(node, path, "a hierarchy")
        spec = parse_short(scalar.text) if scalar is not None else None
        if spec is None and scalar is not None:
            reader.problem(node, path, f"hierarchy: {node.describe()} is not understood; write levels such as "
                                       "node,core, widths such as 4x8, none, or a mapping")
        return spec
    if node.kind == "list":
        return HierarchySpec(levels=_levels(reader, node, path))
    fields = reader.fields(node, path, ("levels", "width", "children", "distribution"), "hierarchy")
    if fields is None:
        return None
    shapes = [key for key in ("levels", "width", "children") if key in fields]
    if len(shapes) > 1 or (not shapes and all(key == "distribution" for key in node.entries)):
        reader.problem(node, path, f"hierarchy: give {'only ' if shapes else ''}one of levels, width and children")
    distribution = read_distribution(reader, *fields.get("distribution")) or "pull"
    read = [_shape(reader, key, *fields.get(key), distribution) for key in shapes]
    return read[0] if len(read) == 1 else None


def _shape(reader: Reader, key: str, value: Node | None, path: str, distribution: str) -> HierarchySpec:
    assert value is not None
    if key == "children":
        nested = NestedSpec(children=_children(reader, value, path, 1, [MAX_SCHEDULERS]))
        return HierarchySpec(nested=nested, distribution=distribution)
    if key == "width":
        items = value.items if value.kind == "list" else [value]
        widths = tuple(LevelSpec(by="width", width=reader.integer(item, f"{path}[{i}]", 1, 1, MAX_SCHEDULERS))
                       for i, item in enumerate(items))
        return HierarchySpec(levels=_checked(reader, value, path, widths), distribution=distribution)
    return HierarchySpec(levels=_levels(reader, value, path), distribution=distribution)


def parse_short(text: str) -> HierarchySpec | None:
    """``none``, ``node,core``, ``numa``, ``4x8``, ``node,4``; None when it is none of these."""
    text = text.strip()
    if text == "none":
        return HierarchySpec(levels=())
    if _WIDTHS.fullmatch(text):
        parts = text.split("x")
    else:
        parts = [part.strip() for part in text.split(",")]
    levels: list[LevelSpec] = []
    for part in parts:
        if part in RESOURCE_LEVELS:
            levels.append(LevelSpec(by=part))
        elif part.isascii() and part.isdigit() and len(part) < 8 and int(part) > 0:
            levels.append(LevelSpec(by="width", width=int(part)))
        else:
            return None
    return HierarchySpec(levels=tuple(levels)) if _mistake(tuple(levels)) is None else None


def _mistake(levels: tuple[LevelSpec, ...]) -> str | None:
    """What is wrong with levels that are each right."""
    if len(levels) > MAX_LEVELS:
        return f"more than {MAX_LEVELS} levels"
    total = 1
    for level in levels:
        total *= max(1, level.width)
    if total > MAX_SCHEDULERS:
        return f"the widths multiply to more than {MAX_SCHEDULERS:,} schedulers"
    order = [RESOURCE_LEVELS.index(level.by) for level in levels if level.by in RESOURCE_LEVELS]
    if any(a >= b for a, b in itertools.pairwise(order)):
        return f"levels go from coarse to fine, each once: {', '.join(RESOURCE_LEVELS)}"
    return None


def _checked(reader: Reader, node: Node, path: str, levels: tuple[LevelSpec, ...]) -> tuple[LevelSpec, ...]:
    mistake = _mistake(levels)
    if mistake:
        reader.problem(node, path, f"hierarchy: {mistake}")
    return levels


def _levels(reader: Reader, node: Node, path: str) -> tuple[LevelSpec, ...]:
    if node.kind != "list":
        reader.problem(node, path, f"levels: expected a list such as [node, core], not {node.describe()}")
        return ()
    found = [_level(reader, item, f"{path}[{i}]") for i, item in enumerate(node.items)]
    return _checked(reader, node, path, tuple(level for level in found if level is not None))


def _level(reader: Reader, node: Node, path: str) -> LevelSpec | None:
    if node.kind == "scalar":
        scalar = reader.scalar(node, path, "a level")
        if scalar is None:
            return None
        if scalar.text in RESOURCE_LEVELS:
            return LevelSpec(by=scalar.text)
        if scalar.text.lstrip("-").isdigit() and scalar.plain:
            return LevelSpec(by="width", width=reader.integer(scalar, path, 1, 1, MAX_SCHEDULERS))
        reader.problem(node, path, f"levels: expected node, numa, core or a width, not {node.describe()}"
                       f"{reader.problems.suggest(scalar.text, RESOURCE_LEVELS)}")
        return None
    fields = reader.fields(node, path, ("by", "width", "policy", "distribution"), "level")
    if fields is None:
        return None
    one = ("by" in fields) != ("width" in fields)
    if not one:
        reader.problem(node, path, "level: give either 'by' (node, numa or core) or 'width'")
    by = reader.choice(*fields.get("by"), "width", RESOURCE_LEVELS)
    level = LevelSpec(
        by=by, width=reader.integer(*fields.get("width"), 0, 1, MAX_SCHEDULERS),
        policy=read_policy(reader, *fields.get("policy")),
        distribution=read_distribution(reader, *fields.get("distribution")))
    return level if one else None


def read_distribution(reader: Reader, node: Node | None, path: str) -> str:
    """How jobs are dealt: a known name, ``by_key:PARAMETER``, ``module:Class``; "" when absent or wrong."""
    if node is not None and node.kind == "scalar" and ":" in node.text:
        before, _, after = node.text.partition(":")
        if after.isidentifier() and all(part.isidentifier() for part in before.split(".")):
            reader.remember(f"distribution {node.text}", node)
            return node.text
    return reader.choice(node, path, "", DISTRIBUTIONS)


def _children(reader: Reader, node: Node, path: str, times: int, budget: list[int]) -> tuple[NestedSpec, ...]:
    """The children of one scheduler, of which there are ``times``; ``budget`` is what may still be made."""
    if node.kind != "list" or not node.items:
        reader.problem(node, path, f"children: expected a list of at least one scheduler, not "
                       f"{'an empty one' if node.kind == 'list' else node.describe()}")
        return ()
    children: list[NestedSpec] = []
    taken: set[str] = set()
    for i, item in enumerate(node.items):
        where = f"{path}[{i}]"
        fields = reader.fields(item, where, ("name", "share", "count", "policy", "distribution", "children"), "child")
        if fields is None:
            continue
        count = reader.integer(*fields.get("count"), 1, 1, MAX_SCHEDULERS)
        before = budget[0]
        budget[0] -= count * times
        if budget[0] < 0:
            if before >= 0:
                reader.problem(item, where, f"hierarchy: more than {MAX_SCHEDULERS:,} schedulers")
            continue
        child = _child(reader, fields, times * count, budget)
        if child is None:
            continue
        names = [child.name] if count == 1 else [f"{child.name}-{n}" if child.name else "" for n in range(count)]
        twice = next((name for name in names if name and name in taken), None)
        if twice:
            reader.problem(item, where, f"children: two of them are called {twice}")
        taken.update(names)
        for name in names:
            children.append(child if name == child.name else _renamed(child, name))
    return tuple(children)


def _renamed(child: NestedSpec, name: str) -> NestedSpec:
    return NestedSpec(name=name, share_nodes=child.share_nodes, share_cores=child.share_cores,
                      share_gpus=child.share_gpus, policy=child.policy, distribution=child.distribution,
                      children=child.children)


def _child(reader: Reader, fields: Fields, times: int, budget: list[int]) -> NestedSpec | None:
    share = reader.fields(*fields.get("share"), ("nodes", "cores", "gpus"), "share")
    amounts = [0, 0, 0]
    if share is not None:
        before = len(reader.problems.found)
        amounts = [reader.integer(*share.get(key), 0, 0, 1_000_000_000) for key in ("nodes", "cores", "gpus")]
        if not any(amounts) and len(reader.problems.found) == before:
            reader.problem(share.node, share.path, "share: give nodes, cores or gpus; leave share away for an even one")
    grandchildren, where = fields.get("children")
    name = fields.get("name")
    return NestedSpec(
        name=reader.text(*name) if name[0] is not None else "",
        share_nodes=amounts[0], share_cores=amounts[1], share_gpus=amounts[2],
        policy=read_policy(reader, *fields.get("policy")),
        distribution=read_distribution(reader, *fields.get("distribution")),
        children=_children(reader, grandchildren, where, times, budget) if grandchildren is not None else ())
