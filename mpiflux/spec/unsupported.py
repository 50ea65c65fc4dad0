"""What the model can say and this version cannot do yet. An issue that makes one work deletes its lines here."""

from __future__ import annotations

from collections.abc import Iterator

from mpiflux.model.jobspec import Workflow


def refusals(workflow: Workflow) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys that lead to the place, message) for everything to refuse."""
    for group in workflow.groups:
        job = ("jobs", group.name)
        if group.mpi != "none":
            yield (*job, "mpi"), f"mpi: {group.mpi} is not yet supported; only none is"
        if group.request.per_node:
            yield (*job, "per"), "per is not yet supported"
        if group.request.nodes > 1:
            yield (*job, "resources", "nodes"), "nodes above 1 is not yet supported: a job runs on one node"
        if any(dependency.kind == "each" for dependency in group.after):
            yield (*job, "after"), "after: each is not yet supported; use ok, any or not_ok"
