"""The hierarchy plan: which schedulers there are, what each owns, on which rank it runs.

Computed from the nodes and the wanted shape alone, so every rank that computes it gets the same plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

import msgspec

from mpiflux.model import hostlist, idset, resources
from mpiflux.model.jobspec import HierarchySpec, JobGroup, LevelSpec, NestedSpec, PolicySpec
from mpiflux.model.resources import NodeResources, count
from mpiflux.overlay.plan_shares import (
    Parts,
    PlanError,
    ShapeError,
    by_core,
    by_numa,
    by_width,
    core_count,
    explicit,
    gpu_count,
    merge,
)

__all__ = ["NodeInfo", "Plan", "PlanError", "PlannedScheduler", "ShapeError", "draw", "explain_misfits", "make_plan",
           "misfits"]

LEVELS = ("node", "numa", "core", "width")


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the instance."""

    index: int
    """Its place in the instance's node table."""
    name: str
    ranks: tuple[int, ...]
    """The MPI ranks on it, ascending."""
    resources: NodeResources
    owner: tuple[int, ...]
    """For each core, in the order of ``resources.cores``, the rank that may start processes on it."""


class PlannedScheduler(msgspec.Struct, frozen=True, kw_only=True):
    """One scheduler of the tree."""

    id: int
    """0 is the root; breadth first."""
    parent: int
    """-1 for the root."""
    children: tuple[int, ...]
    rank: int
    depth: int
    """0 for the root."""
    name: str
    resources: tuple[NodeResources, ...]
    """R. Of a scheduler with children: the union of theirs."""
    policy: PolicySpec
    distribution: str
    """How it deals jobs to its children."""
    consumables: dict[str, int] = {}
    """The named resources that belong to the instance and to no node, which the root keeps."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    schedulers: tuple[PlannedScheduler, ...]
    """In order of id."""
    notes: tuple[str, ...] = ()
    """What a person should know: parts that came out empty, resources in nobody's share."""
    hosts: dict[int, str] = {}
    """Node index to name."""

    @property
    def depth(self) -> int:
        """Levels of schedulers; 1 when there is only the root."""
        return self.schedulers[-1].depth + 1

    @property
    def leaves(self) -> tuple[PlannedScheduler, ...]:
        return tuple(s for s in self.schedulers if not s.children)


class _Draft:
    """A scheduler in the making."""

    __slots__ = ("children", "depth", "label", "name", "nested", "parent", "parts", "policy", "shared")

    def __init__(self, parent: int, depth: int, name: str, label: str, parts: Parts, policy: PolicySpec,
                 shared: dict[str, int], nested: NestedSpec | None = None) -> None:
        self.parent, self.depth, self.name, self.label = parent, depth, name, label
        self.parts, self.policy, self.shared, self.nested = parts, policy, shared, nested
        self.children: list[int] = []


def make_plan(nodes: Sequence[NodeInfo], hierarchy: HierarchySpec | None = None, policy: PolicySpec | None = None,
              consumables: Mapping[str, int] | None = None) -> Plan:
    """The tree of schedulers for these nodes.

    ``hierarchy`` None: one scheduler on one node, else one a node below the root. ``policy`` is that of every
    scheduler whose level or entry names none. ``consumables`` belong to the instance as a whole; the root keeps them.
    Raises PlanError; of its kind ShapeError where the hierarchy does not fit the nodes.
    """
    usable = [n for n in nodes if n.resources.cores]
    _check(nodes, usable)
    notes = [f"node {n.name} has no cores to run anything on and is left out" for n in nodes if not n.resources.cores]
    if hierarchy is None:
        hierarchy = HierarchySpec(levels=(LevelSpec(by="node"),) if len(usable) > 1 else ())
    build = _Builder(usable, hierarchy, policy or PolicySpec(), dict(consumables or {}))
    return build.plan(notes)


def _check(nodes: Sequence[NodeInfo], usable: Sequence[NodeInfo]) -> None:
    if not usable:
        raise PlanError("there are no cores to schedule: " + (
            "no node was found" if not nodes else "no node has a usable core. Check the launcher's binding options"))
    seen: set[int] = set()
    for n in usable:
        if not n.ranks:
            raise PlanError(f"node {n.name} has no rank: nobody could start jobs there")
        if len(n.owner) != len(n.resources.cores):
            raise PlanError(f"node {n.name}: {len(n.owner)} owners for {count(len(n.resources.cores), 'core')}")
        if n.index in seen or n.index != n.resources.node:
            raise PlanError(f"node {n.name}: index {n.index} is there twice or is not that of its resources")
        seen.add(n.index)


class _Builder:
    def __init__(self, nodes: Sequence[NodeInfo], spec: HierarchySpec, policy: PolicySpec,
                 shared: dict[str, int]) -> None:
        if spec.levels and spec.nested is not None:
            raise ShapeError("hierarchy: give levels or children, not both")
        for level in spec.levels or ():
            if level.by not in LEVELS:
                raise ShapeError(f"hierarchy: level {level.by!r} is unknown; there are {', '.join(LEVELS)}")
            if level.by == "width" and level.width < 1:
                raise ShapeError(f"hierarchy: a width of {level.width} makes no scheduler; it is at least 1")
        self.info = {n.index: n for n in nodes}
        self.owner: dict[int, dict[int, int]] = {}
        self.levels = spec.levels or ()
        self.distribution = spec.distribution
        self.policy = policy
        nested = spec.nested
        root_policy = nested.policy if nested is not None and nested.policy is not None else policy
        self.drafts = [_Draft(-1, 0, nested.name if nested is not None and nested.name else "root", "",
                              [n.resources for n in nodes], root_policy, shared, nested)]
        self.asked: dict[int, int] = {}
        """Level to schedulers that its width asks for, where they are more than there are cores."""
        self.lost = False
        self.notes: list[str] = []
        self.mistakes: list[str] = []

    def plan(self, notes: Sequence[str]) -> Plan:
        for number, draft in enumerate(self.drafts):  # grows as it goes: breadth first
            if draft.nested is not None:
                self._nest(number, draft, draft.nested)
            elif draft.depth < len(self.levels):
                self._split(number, draft, self.levels[draft.depth])
        if self.mistakes:
            raise ShapeError(*dict.fromkeys(self.mistakes))
        if self.lost:
            for draft in reversed(self.drafts):
                if draft.children:
                    draft.parts = merge(draft.parts, [self.drafts[c].parts for c in draft.children])
        made = tuple(self._finish(number, draft) for number, draft in enumerate(self.drafts))
        return Plan(schedulers=made, notes=(*notes, *self.notes, *self._width_notes()),
                    hosts={index: n.name for index, n in self.info.items()})

    def _add(self, parent: int, name: str, label: str, parts: Parts, policy: PolicySpec,
             nested: NestedSpec | None = None) -> None:
        self.drafts[parent].children.append(len(self.drafts))
        self.drafts.append(_Draft(parent, self.drafts[parent].depth + 1, name, label, parts, policy, {}, nested))

    def _split(self, number: int, draft: _Draft, level: LevelSpec) -> None:
        if level.by == "node":
            children = [[n] for n in draft.parts]
        elif level.by == "numa":
            children = by_numa(draft.parts)
        elif level.by == "core":
            children = by_core(draft.parts)
        else:
            children = by_width(draft.parts, level.width)
            self.asked[draft.depth] = self.asked.get(draft.depth, 0) + level.width
        for i, parts in enumerate(children):
            label = self._label(draft, level, i, parts)
            kind = "part" if level.by == "width" else level.by
            self._add(number, f"{kind} {label}", label, parts, level.policy or self.policy)

    def _label(self, parent: _Draft, level: LevelSpec, i: int, parts: Parts) -> str:
        first = parts[0]
        host = self.info[first.node].name
        if level.by == "node":
            return host
        if level.by == "numa":
            return f"{host}/{first.numa[0] if first.numa else 0}"
        if level.by == "core":
            return f"{host}/{first.cores[0]}"
        return f"{parent.label}.{i}" if parent.label else str(i)

    def _nest(self, number: int, draft: _Draft, spec: NestedSpec) -> None:
        if not spec.children:
            return
        try:
            given, notes = explicit(draft.parts, spec.children, lambda index: self.info[index].name)
        except ShapeError as error:
            self.mistakes += error.mistakes
            return
        if notes:
            self.lost = True
            self.notes += [f"{draft.name}: {note}" for note in notes]
        for i, (child, parts) in enumerate(zip(spec.children, given, strict=True)):
            label = f"{draft.label}.{i}" if draft.label else str(i)
            name = child.name or f"part {label}"
            if not core_count(parts):
                self.lost = True
                self.notes.append(f"{name}: no core of {draft.name} is left for it; it is left out")
                continue
            self._add(number, name, label, parts, child.policy or self.policy, child)

    def _width_notes(self) -> list[str]:
        """In words, where a width asks for more schedulers than there are cores."""
        at = [0] * (len(self.levels) + 1)
        for draft in self.drafts:
            at[draft.depth if self.levels else 0] += 1
        short = [d for d, asked in self.asked.items() if at[d + 1] < asked]
        if not short:
            return []
        cores = count(core_count(self.drafts[0].parts), "core")
        if all(level.by == "width" for level in self.levels):
            widths = [level.width for level in self.levels]
            return [f"width {','.join(map(str, widths))} makes {prod(widths)} leaf schedulers; "
                    f"{cores} make {at[-1]} of them"]
        return [f"level {d + 1}, width {self.levels[d].width}: makes {self.asked[d]} schedulers; "
                f"{cores} make {at[d + 1]} of them" for d in short]

    def _finish(self, number: int, draft: _Draft) -> PlannedScheduler:
        if draft.nested is not None:
            distribution = draft.nested.distribution or self.distribution
        elif draft.depth < len(self.levels):
            distribution = self.levels[draft.depth].distribution or self.distribution
        else:
            distribution = self.distribution
        return PlannedScheduler(
            id=number, parent=draft.parent, children=tuple(draft.children), rank=self._rank(number, draft.parts),
            depth=draft.depth, name=draft.name, resources=tuple(draft.parts), policy=draft.policy,
            distribution=distribution, consumables=draft.shared)

    def _rank(self, number: int, parts: Parts) -> int:
        """The root on rank 0; a scheduler of whole nodes on the first rank of its first; a finer one on the rank
        that owns its first core."""
        first = next((n for n in parts if n.cores), parts[0])
        node = self.info[first.node]
        if number == 0:
            return 0
        if len(first.cores) in (0, len(node.resources.cores)):
            return node.ranks[0]
        owner = self.owner.get(node.index)
        if owner is None:
            owner = self.owner[node.index] = dict(zip(node.resources.cores, node.owner, strict=True))
        return owner[first.cores[0]]


# -- for a person ------------------------------------------------------------------------------------------------

_RUN = 4
"""Equal siblings from this many on are drawn as the first and a count."""


def draw(plan: Plan) -> str:
    """The tree as text, one line a scheduler with what it owns; long runs of equal siblings become one line."""
    root = plan.schedulers[0]
    lines = [f"{count(len(plan.schedulers), 'scheduler')}, depth {plan.depth}, {count(len(root.resources), 'node')}, "
             f"{count(core_count(root.resources), 'core')}, {count(gpu_count(root.resources), 'GPU')}"]
    shape = _shapes(plan)
    pending: list[tuple[str, str, int, int]] = [("", "", 0, 0)]
    """(what precedes the line, what precedes its children's lines, scheduler, how many like it follow)."""
    while pending:
        lead, below, number, more = pending.pop()
        if more:
            lines.append(f"{lead}… {more} more like this, to {plan.schedulers[number].name}")
            continue
        s = plan.schedulers[number]
        lines.append(lead + _line(plan, s))
        rows: list[tuple[int, int]] = []
        i = 0
        while i < len(s.children):
            run = i + 1
            while run < len(s.children) and shape[s.children[run]] == shape[s.children[i]]:
                run += 1
            if run - i >= _RUN:
                rows += [(s.children[i], 0), (s.children[run - 1], run - i - 1)]
            else:
                rows += [(child, 0) for child in s.children[i:run]]
            i = run
        for j in range(len(rows) - 1, -1, -1):
            last = j == len(rows) - 1
            pending.append((below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "), *rows[j]))
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _shapes(plan: Plan) -> list[int]:
    """For each scheduler a number that equals another's when both look alike with all that is below them."""
    known: dict[object, int] = {}
    shape = [0] * len(plan.schedulers)
    for s in reversed(plan.schedulers):
        key = (tuple((len(n.cores), len(n.gpus)) for n in s.resources), s.policy.name,
               tuple(sorted((k, str(v)) for k, v in s.policy.options.items())), s.distribution,
               tuple(shape[c] for c in s.children))
        shape[s.id] = known.setdefault(key, len(known))
    return shape


def _line(plan: Plan, s: PlannedScheduler) -> str:
    options = ", ".join(f"{k} {v}" for k, v in s.policy.options.items())
    parts = [owned(plan, s.resources), f"policy {s.policy.name}" + (f" ({options})" if options else "")]
    if s.consumables:
        parts.insert(1, " ".join(f"{k} {v}" for k, v in sorted(s.consumables.items())))
    if s.children:
        parts.append(f"deals by {s.distribution}")
    return f"{s.name}: {' · '.join([*parts, f'rank {s.rank}'])}"


def owned(plan: Plan, parts: Sequence[NodeResources]) -> str:
    """An R in words: ``n[1-2] cores 0-43 gpus 0-3``; nodes that give the same stand together."""
    groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for n in parts:
        groups.setdefault((n.cores, n.gpus), []).append(plan.hosts[n.node])
    texts = []
    for (cores, gpus), hosts in groups.items():
        word = "core" if len(cores) == 1 else "cores"
        text = f"{hostlist.encode(hosts)} {word} {idset.encode(cores)}" if cores else hostlist.encode(hosts)
        texts.append(text + (f" {'gpu' if len(gpus) == 1 else 'gpus'} {idset.encode(gpus)}" if gpus else ""))
    if len(texts) > 4:
        texts[3:] = [f"and {len(texts) - 3} other kinds of nodes"]
    return "; ".join(texts)


def explain_misfits(plan: Plan, groups: Iterable[JobGroup]) -> list[str]:
    """The texts of :func:`misfits`."""
    return [text for _, text in misfits(plan, groups)]


def misfits(plan: Plan, groups: Iterable[JobGroup]) -> Iterator[tuple[JobGroup, str]]:
    """Each group that no scheduler can ever hold: what it asks and what the largest node has.

    The root holds whatever any other does: what is larger than a child's share runs on resources borrowed back.
    """
    root = plan.schedulers[0]
    found = resources.kinds(root.resources)
    for group in groups:
        reason = resources.misfit(found, root.consumables, group.request)
        if reason is not None:
            yield group, f"job {group.name!r} {reason}, in the whole instance"
