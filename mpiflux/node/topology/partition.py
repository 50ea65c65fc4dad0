"""Who of several ranks on a machine owns which of its cores."""

from __future__ import annotations

from mpiflux.node.topology.types import Topology


def partition_cores(topology: Topology, local_size: int, local_rank: int) -> tuple[int, ...]:
    """Logical numbers of the cores that rank ``local_rank`` of ``local_size`` on this machine owns.

    The cores are cut into contiguous runs ``[rank*C//n, (rank+1)*C//n)``: every core has one owner, runs differ by
    at most one core, neighbours share caches. With more ranks than cores some ranks own none, rank 0 first among
    them. Raises ValueError for a rank outside ``range(local_size)``.
    """
    if not 0 <= local_rank < local_size:
        raise ValueError(f"local rank {local_rank} of {local_size} ranks: must be 0 to {local_size - 1}")
    count = len(topology.cores)
    first, stop = local_rank * count // local_size, (local_rank + 1) * count // local_size
    return tuple(core.logical for core in topology.cores[first:stop])
