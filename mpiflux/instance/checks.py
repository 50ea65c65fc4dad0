"""Whether a workflow can run on the machine that is here: all that is wrong with it and with the options, at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from mpiflux.instance.options import RunError, RunOptions
from mpiflux.instance.site import Site
from mpiflux.instance.vault import missing, unset
from mpiflux.model.jobspec import HierarchySpec, JobGroup, NestedSpec, Place, PolicySpec, Workflow
from mpiflux.overlay.pernode import expand
from mpiflux.overlay.plan import NodeInfo, Plan, PlanError, ShapeError, make_plan, misfits
from mpiflux.sched.distribution import DistributionError
from mpiflux.sched.distribution import make as make_distribution
from mpiflux.sched.policies import PolicyError
from mpiflux.sched.policies import make as make_policy
from mpiflux.spec import Problem, WorkflowError, load, load_policy, load_shape

_SET = "--set "


@dataclass(frozen=True)
class Checked:
    """A workflow and its tree, with jobs ``per: node`` on every node."""

    workflow: Workflow
    plan: Plan
    misfits: tuple[str, ...]
    """Jobs that no scheduler can ever hold, and why."""
    mistakes: str
    """The same with their places, a line each."""


class Mistakes:
    """Collects what is wrong, to tell it in order: the command line, then the file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.more: list[str] = []
        self._texts: dict[str, tuple[bool, int, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._texts)

    def __str__(self) -> str:
        return "\n".join([*sorted(self._texts, key=self._texts.__getitem__), *self.more])

    def add(self, place: Place | None, text: str) -> None:
        if place is None:
            self._texts[text] = False, 0, 0
        else:
            self._texts[f"{place}: {text}"] = place.source == self.file, place.line, place.column

    def take(self, error: WorkflowError) -> Workflow | None:
        """Note all that is in ``error``; what could be read of the workflow."""
        self.problems += error.problems
        for problem in error.problems:
            self.add(problem.place, problem.message)
        if error.more:
            self.more.append(error.more)
        return error.workflow


def check(options: RunOptions, site: Site, others: Iterable[str] = ()) -> Checked:
    """Read what ``options`` name and plan the tree. Raises RunError with everything that is wrong, ``others`` too,
    unless it is only that jobs are too large."""
    mistakes = Mistakes(options.workflow)
    for text in others:
        mistakes.add(None, text)
    workflow = _read(options, mistakes)
    if workflow is None:
        raise RunError(str(mistakes))
    if not is_text(workflow.directory):
        mistakes.add(None, not_text(workflow.directory))
    plan = _plan(workflow, site, mistakes)
    if plan is None:
        raise RunError(str(mistakes))
    usable = [part.node for part in plan.schedulers[0].resources if part.cores]
    workflow = expand(workflow, usable, [site.nodes[number].name for number in usable])
    for group in workflow.groups:
        names = missing(group.secrets, os.environ)
        if names:
            mistakes.add(workflow.places.get(f"secrets {group.name}", Place(workflow.source)), unset(names))
    wrong = bool(mistakes)
    too_large = list(misfits(plan, _judged(workflow, mistakes)))
    for group, text in too_large:
        mistakes.add(workflow.places.get(f"job {group.name}", Place(workflow.source)), text)
    if wrong:
        raise RunError(str(mistakes))
    return Checked(workflow, plan, tuple(text for _, text in too_large), str(mistakes))


def _read(options: RunOptions, mistakes: Mistakes) -> Workflow | None:
    """The workflow with what the options change in it, as far as it could be read."""
    workflow: Workflow | None = None
    try:
        if options.initial_program and not options.workflow:
            workflow = Workflow(name="start", directory=os.getcwd())
        else:
            workflow = load(options.workflow, overrides=options.overrides)
    except WorkflowError as error:
        workflow = mistakes.take(error)
    changes: dict[str, HierarchySpec | PolicySpec] = {}
    places: dict[str, Place] = {}
    try:
        if options.hierarchy is not None:
            changes["hierarchy"], places = load_shape(options.hierarchy)
    except WorkflowError as error:
        mistakes.take(error)
    try:
        if options.policy is not None:
            changes["policy"] = load_policy(options.policy, workflow.directory if workflow is not None else "")
            places[f"policy {options.policy}"] = Place("--policy")
    except WorkflowError as error:
        mistakes.take(error)
    if workflow is None or not changes:
        return workflow
    return msgspec.structs.replace(workflow, places={**workflow.places, **places}, **changes)


def _plan(workflow: Workflow, site: Site, mistakes: Mistakes) -> Plan | None:
    """The tree; where the shape that is wanted cannot be made, the usual one, to judge the jobs by."""
    nodes = [NodeInfo(index=index, name=node.name, ranks=node.ranks, owner=node.owner,
                      resources=msgspec.structs.replace(node.resources(index), consumables=workflow.node_consumables))
             for index, node in enumerate(site.nodes)]
    places, here = workflow.places, Place(workflow.source)
    for policy in _policies(workflow):
        try:
            make_policy(policy)
        except PolicyError as error:
            mistakes.add(places.get(f"policy {policy.name}", here), str(error))
    for distribution in _distributions(workflow.hierarchy):
        try:
            make_distribution(distribution)
        except DistributionError as error:
            mistakes.add(places.get(f"distribution {distribution}", here), str(error))
    try:
        try:
            return make_plan(nodes, workflow.hierarchy, workflow.policy, workflow.consumables)
        except ShapeError as error:
            for text in error.mistakes:
                mistakes.add(places.get("hierarchy", here), text)
            return make_plan(nodes, None, None, workflow.consumables)
    except PlanError as error:
        mistakes.add(None, str(error))
        return None


def _policies(workflow: Workflow) -> Iterator[PolicySpec]:
    yield workflow.policy
    hierarchy = workflow.hierarchy or HierarchySpec()
    for one in (*(hierarchy.levels or ()), *_schedulers(hierarchy.nested)):
        if one.policy is not None:
            yield one.policy


def _distributions(hierarchy: HierarchySpec | None) -> set[str]:
    if hierarchy is None:
        return set()
    below = (*(hierarchy.levels or ()), *_schedulers(hierarchy.nested))
    return {hierarchy.distribution, *(one.distribution for one in below if one.distribution)}


def _schedulers(nested: NestedSpec | None) -> Iterator[NestedSpec]:
    pending = [nested] if nested is not None else []
    while pending:
        one = pending.pop()
        yield one
        pending += one.children


def _judged(workflow: Workflow, mistakes: Mistakes) -> Iterator[JobGroup]:
    """The jobs whose size is known, however wrong the rest is: a mistake must not be told of as two."""
    if any(problem.source.startswith(_SET) for problem in mistakes.problems):
        return
    unsupplied = any(problem.path.startswith("$.resources") for problem in mistakes.problems)
    for group in workflow.groups:
        if unsupplied and group.request.consumables:
            yield msgspec.structs.replace(group, request=msgspec.structs.replace(group.request, consumables={}))
        else:
            yield group


def not_text(path: str) -> str:
    """What is wrong with a path that :func:`is_text` refuses."""
    return f"{path!r} is not a UTF-8 name, which jobs and messages need: rename it, or run in another directory"


def is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
