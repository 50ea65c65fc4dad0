"""The KVS as people see it: the users' keys, and below ``job`` every job of the run.

``job.ID.jobspec``, ``.R``, ``.eventlog``, ``.stdout``, ``.stderr`` (bytes) and ``.result``; ``job.NAME.INDEX.…`` is
another name of the same. Nothing of it is stored as keys: it is put together when it is asked for. What a job itself
has put below ``job.ID.guest`` is, under its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpiflux.store.kvs import GUEST, NoKey, check_key
from mpiflux.store.schema import RunError

if TYPE_CHECKING:
    from mpiflux.store.reader import RunReader

JOB_KEYS = ("jobspec", "R", "eventlog", "stdout", "stderr", "result")


def split_guest(key: str) -> tuple[str, str] | None:
    """For a key in a job's namespace: what names the job, and the rest from ``guest`` on. Raises BadKey."""
    if not key.startswith("job.") or f".{GUEST}" not in key:
        return None
    names = check_key(key)
    if GUEST not in names[2:]:
        return None
    at = names.index(GUEST, 2)
    return ".".join(names[1:at]), ".".join(names[at:])


def _own(run: RunReader, key: str) -> str | None:
    """A key in a job's namespace as it is stored; None for any other."""
    found = split_guest(key)
    if found is None:
        return None
    try:
        return f"job.{run.one(found[0])}.{found[1]}"
    except RunError as error:
        raise NoKey(f"there is no key {key!r}: {error}") from None


def get(run: RunReader, key: str) -> Any:
    """A key's value. Raises BadKey or NoKey."""
    names = check_key(key)
    if names[0] != "job":
        return run.kvs_data(key)
    own = _own(run, key)
    if own is not None:
        return run.kvs_data(own)
    if len(names) < 3 or names[-1] not in JOB_KEYS:
        raise NoKey(f"there is no key {key!r}; a job has {', '.join('job.ID.' + name for name in JOB_KEYS)}")
    try:
        id = run.one(".".join(names[1:-1]))
    except RunError as error:
        raise NoKey(f"there is no key {key!r}: {error}") from None
    what = names[-1]
    if what in ("stdout", "stderr"):
        return run.output(id, 1 if what == "stdout" else 2)
    if what == "eventlog":
        return [event._asdict() for event in run.eventlog(id)]
    return {"jobspec": run.jobspec, "R": run.R, "result": run.job}[what](id)


def ls(run: RunReader, prefix: str = "", *, recursive: bool = False) -> list[str]:
    """Keys below a prefix; directories end in a dot. Raises BadKey or NoKey."""
    if prefix.split(".")[0] != "job":
        keys = run.kvs().ls(prefix, recursive=recursive)
        return keys if prefix or not run.groups or "job." in keys else [*keys, "job."]
    own = _own(run, prefix)
    if own is not None:
        return run.kvs().ls(own, recursive=recursive)
    if prefix == "job":
        return [f"job.{id}." for id in range(1, run.total + 1)] + [f"job.{name}." for name in run.named]
    inner = prefix[len("job."):]
    if inner in run.named:
        return [f"{prefix}.{i}." for i in range(sum(group.count for group in run.named[inner]))]
    if inner.rpartition(".")[2] in JOB_KEYS:
        get(run, prefix)
        return [prefix]
    try:
        id = run.one(inner)
    except RunError as error:
        raise NoKey(str(error)) from None
    guest = [f"{prefix}.{GUEST}."] if run.kvs().is_dir(f"job.{id}.{GUEST}") else []
    return [*(f"{prefix}.{name}" for name in JOB_KEYS), *guest]
