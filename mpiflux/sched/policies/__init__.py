"""Scheduling policies, one module each, found by name; a user's own by ``package.module:Class`` or entry point."""

from __future__ import annotations

from mpiflux.model.jobspec import PolicySpec
from mpiflux.sched.own import told
from mpiflux.sched.policies.base import (
    Machine,
    Planner,
    Policy,
    PolicyError,
    by_age,
    integer_option,
    number_option,
    planner,
)
from mpiflux.sched.policies.conservative import Conservative
from mpiflux.sched.policies.easy import Easy
from mpiflux.sched.policies.fcfs import Fcfs
from mpiflux.sched.policies.priority import Priority

KNOWN: dict[str, type[Policy]] = {policy.name: policy for policy in (Fcfs, Easy, Conservative, Priority)}

__all__ = ["KNOWN", "Machine", "Planner", "Policy", "PolicyError", "by_age", "integer_option", "make", "number_option",
           "planner"]


def make(spec: PolicySpec) -> Policy:
    """The policy that a workflow names. Raises PolicyError."""
    found = KNOWN.get(spec.name)
    if found is None:
        from mpiflux.sched.policies import own  # few runs have one, and finding it reads many small files

        found = own.find(spec, KNOWN)
    unknown = set(spec.options) - set(found.options)
    if unknown:
        has = f"it has: {', '.join(found.options)}" if found.options else "it has none"
        raise PolicyError(f"policy {spec.name} has no option {', '.join(sorted(unknown))}; {has}")
    if spec.name in KNOWN:
        return found(spec)
    try:
        return found(spec)
    except PolicyError:
        raise
    except Exception as error:
        raise PolicyError(f"policy {spec.name} cannot be made: {told(error)}") from error
