"""The workflow file: read, checked as a whole, and turned into the typed :class:`mpiflux.model.jobspec.Workflow`.

Names load on first use: a rank that only reads a duration from its command line needs no YAML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpiflux.spec.loader import load, load_hierarchy, load_policy, load_shape
    from mpiflux.spec.problems import Problem, WorkflowError

__all__ = ["Problem", "WorkflowError", "load", "load_hierarchy", "load_policy", "load_shape"]

_HOMES = {"load": "loader", "load_hierarchy": "loader", "load_policy": "loader", "load_shape": "loader",
          "Problem": "problems", "WorkflowError": "problems"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
