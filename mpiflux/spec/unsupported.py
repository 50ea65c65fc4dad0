"""What the model can say and this version cannot do yet. An issue that makes one work deletes its lines here."""

from __future__ import annotations

from collections.abc import Iterator

from mpiflux.model.jobspec import Workflow


def refusals(workflow: Workflow) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys that lead to the place, message) for everything to refuse: nothing, at present."""
    yield from ()
