"""Scheduling policies, one module each, found by name."""

from __future__ import annotations

from mpiflux.model.jobspec import PolicySpec
from mpiflux.sched.policies.base import Machine, Policy, PolicyError
from mpiflux.sched.policies.fcfs import Fcfs

KNOWN = {policy.name: policy for policy in (Fcfs,)}

__all__ = ["KNOWN", "Machine", "Policy", "PolicyError", "make"]


def make(spec: PolicySpec) -> Policy:
    """The policy that a workflow names. Raises PolicyError."""
    found = KNOWN.get(spec.name)
    if found is None:
        raise PolicyError(f"no policy is called {spec.name!r}; there is: {', '.join(sorted(KNOWN))}")
    unknown = set(spec.options) - found.options
    if unknown:
        raise PolicyError(f"policy {spec.name} has no option {', '.join(sorted(unknown))}; "
                          f"it has: {', '.join(sorted(found.options))}")
    return found(spec)
