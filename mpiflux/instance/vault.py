"""Values of variables that are named as secrets: in rank 0's memory, and told to who starts the jobs that name them.

They come from the environment of mpiflux, or with a submission, and go into no file. The run directory has the names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Sealed


class Vault:
    """``groups`` are those that an instance begins with, ``environ`` where their values are."""

    def __init__(self, groups: Iterable[JobGroup] = (), environ: Mapping[str, str] | None = None) -> None:
        environ = environ or {}
        names = sorted({name for group in groups for name in group.secrets})
        self._hidden = tuple(names)
        """Names that jobs do not inherit unless they name them."""
        self._values = {name: os.fsencode(environ[name]) for name in names if name in environ}
        self._own: dict[int, Mapping[str, bytes]] = {}
        """By group: values that came with its submission."""

    def keep(self, group: int, values: Mapping[str, bytes]) -> None:
        """What a submitted group brought with it."""
        if values:
            self._own[group] = values

    def drop(self, group: int) -> None:
        """All jobs of a group have ended."""
        self._own.pop(group, None)

    def of(self, group: JobGroup) -> Sealed:
        """What the jobs of a group get, and what they do not."""
        if not group.secrets and not self._hidden:
            return _NOTHING
        values = {**self._values, **self._own.get(group.number, {})}
        return Sealed({name: values[name] for name in group.secrets if name in values}, self._hidden)


_NOTHING = Sealed()


def missing(names: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """Those names that have no value."""
    return [name for name in dict.fromkeys(names) if name not in environ]


def unset(names: Sequence[str]) -> str:
    """What to tell a person."""
    return (f"secrets: {', '.join(names)} {'is' if len(names) == 1 else 'are'} not set: give the "
            "environment of mpiflux a value, as with `export`")
