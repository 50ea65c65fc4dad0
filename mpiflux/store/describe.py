"""Jobs as dictionaries that people and programs read: the job record, R, the jobspec. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mpiflux.model import idset
from mpiflux.model.jobspec import Dependency, JobGroup
from mpiflux.model.messages import NodeShare, ResourceSet
from mpiflux.model.records import FLAG_NOT_STARTED
from mpiflux.model.states import Result, State
from mpiflux.model.template import CompiledGroup
from mpiflux.store.eventlog import Record, truncated


class Where(NamedTuple):
    """A resource set with its hosts' names."""

    nodes: list[str]
    cores: str | list[str]
    """An idset; one a node where there are several nodes."""
    gpus: str | list[str]
    shares: tuple[NodeShare, ...]


def where(r: ResourceSet, hosts: Sequence[str]) -> Where:
    """Name the nodes of a resource set; a node that ``hosts`` does not know is called by its number."""
    names = [hosts[s.node] if s.node < len(hosts) else f"node{s.node}" for s in r.shares]
    cores = [idset.encode(s.cores) for s in r.shares]
    gpus = [idset.encode(s.gpus) for s in r.shares]
    if len(r.shares) == 1:
        return Where(names, cores[0], gpus[0], r.shares)
    return Where(names, cores, gpus, r.shares)


def job(
    group: JobGroup, id: int, t_submit: float, state: State, record: Record | None, place: Where | None,
    reason: str, tried: int = 0,
) -> dict[str, Any]:
    """The job record of DESIGN.md 1.1. ``record`` is its last attempt's, or the one that runs; None: neither.

    ``attempts`` counts the attempts made: one that was cancelled before it could start is none.
    """
    index = id - group.first_id
    done = state == State.INACTIVE and record is not None
    vain = False
    if record is not None:
        vain = bool(record.flags & FLAG_NOT_STARTED and record.result == Result.CANCELED)
        tried = max(record.attempt - 1, 0) if vain else record.attempt
    ran = done and not vain
    return {
        "id": id, "name": group.name, "index": group.base + index, "params": group.params.row(index),
        "state": state.name,
        "result": Result(record.result).name if done and record else None,
        "returncode": record.returncode if ran and record else None, "attempts": tried,
        "tasks": record.tasks if record and record.tasks else group.request.tasks,
        "nodes": place.nodes if place else [], "cores": place.cores if place else "",
        "gpus": place.gpus if place else "", "t_submit": t_submit,
        "t_start": record.t_start or None if record and not vain else None,
        "t_finish": record.t_finish if done and record else None,
        "utime": round(record.utime, 6) if ran and record else None,
        "stime": round(record.stime, 6) if ran and record else None,
        "maxrss": record.maxrss * 1024 if ran and record else None, "reason": reason,
        "truncated": truncated(record) if record else [],
    }


def rfc20(place: Where, record: Record) -> dict[str, Any]:
    """R, version 1. Nodes with the same cores and GPUs share an ``R_lite`` entry; ranks are node numbers."""
    same: dict[tuple[str, str], list[int]] = {}
    for share in place.shares:
        same.setdefault((idset.encode(share.cores), idset.encode(share.gpus)), []).append(share.node)
    lite = []
    for (cores, gpus), nodes in same.items():
        children = {"core": cores, "gpu": gpus}
        lite.append({"rank": idset.encode(nodes), "children": {k: v for k, v in children.items() if v}})
    named = sorted(zip((s.node for s in place.shares), place.nodes, strict=True))
    return {"version": 1, "execution": {
        "R_lite": lite, "nodelist": [name for _, name in named], "starttime": record.t_alloc,
        "expiration": record.t_finish}}


def jobspec(compiled: CompiledGroup, index: int, attempt: int) -> dict[str, Any]:
    """What element ``index`` asked for, its templates filled in as for ``attempt``."""
    group, request = compiled.group, compiled.group.request

    def text(data: bytes) -> str:
        return data.decode("utf-8", "surrogateescape")

    env = {**compiled.constant_env, **dict(compiled.env_items(index, attempt))}
    script = text(compiled.script(index, attempt)) if group.script is not None else None
    return {
        "name": group.name, "index": group.base + index, "params": group.params.row(index),
        "command": [text(a) for a in compiled.argv(index, attempt)], "script": script, "shell": group.shell,
        "env": {text(k): text(v) for k, v in env.items()}, "secrets": list(group.secrets),
        "cwd": text(compiled.cwd(index, attempt)),
        "input": text(compiled.input(index, attempt)), "output": text(compiled.output(index, attempt)),
        "error": text(compiled.error(index, attempt)),
        "resources": {
            "tasks": request.tasks, "cores": request.cores, "gpus": request.gpus, "nodes": request.nodes,
            "memory": request.memory, "exclusive": request.exclusive, **request.consumables},
        "time_limit": group.time_limit, "retries": group.retries, "priority": group.priority,
        "begin_time": group.begin_time, "begin_after": group.begin_after,
        "after": [_dependency(d) for d in group.after if d.group or d.ids], "mpi": group.mpi,
    }


def _dependency(dependency: Dependency) -> dict[str, Any]:
    out: dict[str, Any] = {"group": dependency.group, "kind": dependency.kind}
    if dependency.kind == "each":
        out["on"] = dependency.on
    return out
