"""What the model can say and this version cannot do yet. An issue that makes one work deletes its lines here."""

from __future__ import annotations

from collections.abc import Iterator

from mpiflux.model.jobspec import Workflow


def refusals(workflow: Workflow) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys that lead to the place, message) for everything to refuse."""
    for group in workflow.groups:
        job = ("jobs", group.name)
        if group.mpi == "pmix":
            yield (*job, "mpi"), ("mpi: pmix is not yet supported; pmi1 serves MPICH, Intel MPI and what is built on "
                                  "them, and Open MPI's own mpirun can be the command of a job on one node")
