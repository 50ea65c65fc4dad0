"""Ranks that pretend to be nodes: a launcher's rank is on the node of its own number, as Slurm would name it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from tests.support.mpi import MpiRun, Stack, installed_stack, start_mpi
from tests.support.runs import LIMIT, ROOT, Place, Run, Workflow

_WRAPPER = """#!/bin/sh
rank=${{PMI_RANK:-$OMPI_COMM_WORLD_RANK}}
SLURMD_NODENAME=n$((rank / {ranks})) SLURM_STEP_ID=0 SLURM_PROCID=$rank exec {python} "$@"
"""


def stack_of_nodes(directory: Path, ranks_a_node: int = 1) -> Stack:
    """The installed MPI, whose ranks believe that they are on nodes n0, n1, …"""
    stack = installed_stack()
    wrapper = directory / f"rank-on-node-{ranks_a_node}"
    wrapper.write_text(_WRAPPER.format(ranks=ranks_a_node, python=stack.python))
    wrapper.chmod(0o755)
    return dataclasses.replace(stack, python=str(wrapper))


def start_on_nodes(place: Place, stack: Stack, workflow: Workflow, *options: str, nodes: int, cores: int,
                   ranks: int = 1, env: Mapping[str, str | None] | None = None) -> tuple[MpiRun, Run]:
    """``mpiflux run`` on that many pretended nodes with so many cores each, running."""
    name = place.new()
    path = place.write(f"{name}.yaml", workflow).name
    argv = ["-m", "mpiflux", "run", path, "--run-dir", name, "--cores-per-node", str(cores), *options]
    running = start_mpi(nodes * ranks, argv, stack=stack, env={"PYTHONPATH": str(ROOT), **(env or {})}, cwd=place.path)
    return running, Run(place.path / name)


def run_on_nodes(place: Place, stack: Stack, workflow: Workflow, *options: str, nodes: int, cores: int, ranks: int = 1,
                 status: int = 0, env: Mapping[str, str | None] | None = None) -> Run:
    """The same to its end."""
    running, run = start_on_nodes(place, stack, workflow, *options, nodes=nodes, cores=cores, ranks=ranks, env=env)
    with running:
        run.done = running.wait(LIMIT)
    assert run.done.returncode == status, f"{run.done.stdout}\n{run.done.stderr}"
    return run
