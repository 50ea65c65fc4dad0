"""Policies that users bring along: classes named in the workflow file, and those that installed packages offer."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points

from mpiflux.model.jobspec import PolicySpec
from mpiflux.sched.policies.base import Policy, PolicyError

GROUP = "mpiflux.policies"
"""The entry point group in which packages offer policies, by the name that workflows give."""


def find(spec: PolicySpec, known: Iterable[str]) -> type[Policy]:
    """The class behind ``package.module:Class`` or the name of an entry point. Raises PolicyError.

    Modules are looked for on ``sys.path``, then in ``spec.directory``, the workflow file's own.
    """
    if ":" in spec.name:
        module, _, name = spec.name.partition(":")
    else:
        offered = {point.name: point.value for point in entry_points(group=GROUP)}
        if spec.name not in offered:
            there = ", ".join([*sorted(known), *sorted(offered)])
            raise PolicyError(f"no policy is called {spec.name!r}; there is: {there}, or your own as "
                              "package.module:Class")
        module, _, name = offered[spec.name].partition(":")
    if spec.directory and spec.directory not in sys.path:
        sys.path.append(spec.directory)
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        beside = f", {spec.directory} among it," if spec.directory else ""
        raise PolicyError(f"policy {spec.name}: cannot be loaded: {type(error).__name__}: {error}; what is on the "
                          f"PYTHONPATH{beside} must be there on every rank") from error
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise PolicyError(f"policy {spec.name}: {name} is not a class derived from mpiflux.sched.policies.Policy")
    if found.__abstractmethods__:
        raise PolicyError(f"policy {spec.name}: {name} has no method {', '.join(sorted(found.__abstractmethods__))}")
    return found
