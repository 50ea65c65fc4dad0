"""``per: node``: a job group once on every node, which is known only when the tree has been planned."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mpiflux.model.jobspec import JobGroup, Workflow
from mpiflux.model.params import Column, ListColumn, ParamTable, Value

NODE = "node"
"""The parameter that tells the jobs of such a group which host they are on."""


def expand(workflow: Workflow, nodes: Sequence[int], hosts: Sequence[str]) -> Workflow:
    """The workflow with every such group's jobs on every one of ``nodes``, whose names are ``hosts``; ids count on."""
    if not any(group.request.per_node for group in workflow.groups):
        return workflow
    groups: list[JobGroup] = []
    first = 1
    for group in workflow.groups:
        if group.request.per_node:
            params = _on_each(group.params, hosts)
            group = msgspec.structs.replace(group, params=params, count=len(params), on=tuple(nodes))
        groups.append(msgspec.structs.replace(group, first_id=first))
        first += group.count
    return msgspec.structs.replace(workflow, groups=tuple(groups))


def _on_each(params: ParamTable, hosts: Sequence[str]) -> ParamTable:
    """Each row once a host, the host varying fastest."""
    columns: tuple[Column, ...] = params.columns
    host = ListColumn(tuple(hosts))
    if params.sampling == "zip" and columns:
        rows = len(params)
        columns = tuple(ListColumn(tuple(_repeated(column, len(hosts)))) for column in columns)
        host = ListColumn(tuple(hosts) * rows)
    return ParamTable((*params.names, NODE), (*columns, host), params.sampling)


def _repeated(column: Column, times: int) -> list[Value]:
    return [column.value(row) for row in range(len(column)) for _ in range(times)]
