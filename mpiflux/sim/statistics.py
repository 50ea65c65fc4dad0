"""What a simulated run amounts to: times, waits, utilisation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from mpiflux.model.records import FLAG_NOT_STARTED
from mpiflux.sim.cluster import START, Cluster
from mpiflux.store.jobtable import RECORD

Array = npt.NDArray[Any]

BOUND = 10.0
"""Seconds below which a job's run time counts as this much, in bounded slowdown (Feitelson et al., 1997)."""
POINTS = 200
"""Intervals of the utilisation over time."""


class Statistics:
    """Numbers of one run. Times in virtual seconds, utilisation from 0 to 1."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name = name
        machine, master = cluster.machine, cluster.master
        records = np.frombuffer(b"".join(master.records), RECORD)
        ran = records[records["flags"] & FLAG_NOT_STARTED == 0]
        counts = master.table.counts()
        self.jobs, self.completed = counts.total, counts.completed
        self.makespan = float(records["t_finish"].max()) - START if len(records) else 0.0
        starts, ends = ran["t_start"] - START, ran["t_finish"] - START
        submitted = master.submitted[ran["id"].astype("i8") - 1] - START
        self.waits: Array = np.maximum(starts - submitted, 0.0)
        run = ends - starts
        slowdown = np.maximum((self.waits + run) / np.maximum(run, BOUND), 1.0)
        self.wait_mean, self.wait_p50, self.wait_p99 = _summary(self.waits)
        self.slowdown_mean, self.slowdown_p50, self.slowdown_p99 = _summary(slowdown)
        widths = _widths(ran, master.rsets)
        self._steps: dict[str, tuple[Array, Array]] = {}
        self.curves: dict[str, Array] = {}
        self.utilisation: dict[str, float] = {}
        self.edges: Array = np.linspace(0.0, self.makespan, POINTS + 1)
        for column, (resource, there) in enumerate((("cores", machine.cores), ("gpus", machine.gpus))):
            if there and self.makespan:
                self._steps[resource] = _steps(starts, ends, widths[:, column] / there)
                self.curves[resource] = _curve(*self._steps[resource], self.edges)
                self.utilisation[resource] = float((run * widths[:, column]).sum() / (there * self.makespan))
        self._named(cluster, ran, starts, ends)
        self.levels = cluster.levels()
        self.events = cluster.engine.events
        self.parts: dict[str, float] = {}
        """Which part of the time until ``recorded`` rank 0, the busiest rank and the busiest supervisor compute."""
        self.recorded = max(self.makespan, cluster.ranks[0].busy_until - START)
        """When rank 0 has recorded the last end."""
        if self.makespan:
            ranks = [rank.busy for rank in cluster.ranks]
            self.parts = {
                "rank 0": ranks[0] / self.recorded, "busiest rank": max(ranks) / self.recorded,
                "busiest supervisor": max(one.busy for one in cluster.executors.values()) / self.recorded}

    def _named(self, cluster: Cluster, ran: Array, starts: Array, ends: Array) -> None:
        """Use of named resources: what jobs ask for counts, as of cores what they hold."""
        machine = cluster.machine
        there = Counter(machine.consumables)
        for node in machine.nodes:
            there.update(node.resources.consumables)
        groups = cluster.master.workflow.groups
        of_group = np.searchsorted(np.asarray([group.first_id for group in groups]), ran["id"], "right") - 1
        for name in sorted(there):
            amounts = np.asarray([float(group.request.consumables.get(name, 0)) for group in groups])
            if self.makespan and there[name]:
                widths = amounts[of_group] / there[name]
                self._steps[name] = _steps(starts, ends, widths)
                self.curves[name] = _curve(*self._steps[name], self.edges)
                self.utilisation[name] = float(((ends - starts) * widths).sum() / self.makespan)

    @property
    def rate(self) -> float:
        """Jobs per second over the whole run."""
        return self.jobs / self.makespan if self.makespan else 0.0

    def steady(self, resource: str, part: float = 0.98) -> tuple[float, float, float] | None:
        """From when to when at least ``part`` of a resource is in use, the first time and the last, and the mean
        between; None when it never is."""
        if resource not in self._steps:
            return None
        times, used = self._steps[resource]
        full = np.flatnonzero(used >= part - 1e-9)
        if not len(full):
            return None
        first, last = int(full[0]), min(int(full[-1]) + 1, len(times) - 1)
        area = float((used[first:last] * np.diff(times[first:last + 1])).sum())
        begin, end = float(times[first]), float(times[last])
        return begin, end, area / (end - begin) if end > begin else float(used[first])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name, "jobs": self.jobs, "completed": self.completed, "makespan": self.makespan,
            "recorded": self.recorded, "jobs_per_second": self.rate,
            "wait": {"mean": self.wait_mean, "p50": self.wait_p50, "p99": self.wait_p99},
            "bounded_slowdown": {"mean": self.slowdown_mean, "p50": self.slowdown_p50, "p99": self.slowdown_p99},
            "utilisation": self.utilisation,
            "utilisation_over_time": {"edges": self.edges.tolist(),
                                      **{name: curve.tolist() for name, curve in self.curves.items()}},
            "levels": [{"schedulers": level.schedulers, "messages": level.messages, "busy": level.busy,
                        "busiest": level.busiest,
                        "busiest_share": level.busiest / self.makespan if self.makespan else 0.0}
                       for level in self.levels],
            "busy_share": self.parts,
        }


def _summary(values: Array) -> tuple[float, float, float]:
    """Mean, median, 99th percentile; zeros of nothing."""
    if not len(values):
        return 0.0, 0.0, 0.0
    return float(values.mean()), float(np.quantile(values, 0.5)), float(np.quantile(values, 0.99))


def _widths(records: Array, rsets: dict[Any, Any]) -> Array:
    """Cores and GPUs that each record's R has."""
    keys = records["r_sched"].astype("u8") << np.uint64(32) | records["r_id"]
    unique, inverse = np.unique(keys, return_inverse=True)
    table = np.zeros((len(unique), 2))
    for i, key in enumerate(unique.tolist()):
        r = rsets.get((key >> 32, key & 0xFFFFFFFF))
        if r is not None:
            table[i] = sum(len(share.cores) for share in r.shares), sum(len(share.gpus) for share in r.shares)
    found: Array = table[inverse]
    return found


def _steps(starts: Array, ends: Array, widths: Array) -> tuple[Array, Array]:
    """(times, what is in use from each on)."""
    times = np.concatenate([starts, ends])
    changes = np.concatenate([widths, -widths])
    order = np.lexsort((changes, times))  # what ends at a time makes room for what starts then
    return times[order], np.cumsum(changes[order])


def _curve(times: Array, used: Array, edges: Array) -> Array:
    """The mean of what is in use within each interval, exactly: by the integral of a step function."""
    area = np.concatenate([[0.0], np.cumsum(used[:-1] * np.diff(times))])
    integral = np.interp(edges, times, area)
    curve: Array = np.diff(integral) / np.diff(edges)
    return curve
