"""From a URI, a run directory or the environment to a socket, or to the directory alone."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple
from urllib.parse import unquote

from mpiflux.client.errors import NotConnected

LOCAL = "local://"
RUNDIR = "rundir://"


class Target(NamedTuple):
    """``socket``: path of an instance's door on this machine; empty: there is only ``run_dir``, live or not."""

    socket: str
    run_dir: str
    why: str = ""
    """Why there is no socket, where there should be one."""


def locate(target: str | os.PathLike[str] | None = None) -> Target:
    """What to connect to. Without ``target``: ``MPIFLUX_URI``, then ``MPIFLUX_RUN_DIR``. Raises NotConnected."""
    chosen = os.fspath(target) if target is not None else (
        os.environ.get("MPIFLUX_URI") or os.environ.get("MPIFLUX_RUN_DIR"))
    if not chosen:
        raise NotConnected("this is no mpiflux job (neither MPIFLUX_URI nor MPIFLUX_RUN_DIR is set): name a run "
                           "directory, as in mpiflux.connect('runs/first')")
    if chosen.startswith(LOCAL):
        return Target(unquote(chosen[len(LOCAL):]), os.environ.get("MPIFLUX_RUN_DIR", ""))
    if chosen.startswith(RUNDIR):
        chosen = unquote(chosen[len(RUNDIR):])
    elif "://" in chosen:
        raise NotConnected(f"{chosen}: a URI is local:///SOCKET or rundir:///DIRECTORY; a directory's name will do too")
    return _of_directory(chosen)


def _of_directory(path: str) -> Target:
    facts = _facts(path)
    doors = facts.get("doors") or []
    for door in doors:
        if isinstance(door, dict) and os.path.exists(str(door.get("path", ""))):
            return Target(str(door["path"]), path)
    if not doors:
        return Target("", path, "its instance takes no clients")
    nodes = ", ".join(str(door.get("node")) for door in doors[:3])
    return Target("", path, f"its instance has ended, or runs on other nodes ({nodes}): there, or by "
                            f"`ssh {doors[0].get('node')}` or `srun --overlap`, it can be reached")


def _facts(path: str) -> dict[str, Any]:
    try:
        with open(os.path.join(path, "instance.json"), encoding="utf-8") as file:
            facts = json.load(file)
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
