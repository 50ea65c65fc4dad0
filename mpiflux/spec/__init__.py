"""The workflow file: read, checked as a whole, and turned into the typed :class:`mpiflux.model.jobspec.Workflow`."""

from mpiflux.spec.loader import load, load_hierarchy
from mpiflux.spec.problems import Problem, WorkflowError

__all__ = ["Problem", "WorkflowError", "load", "load_hierarchy"]
