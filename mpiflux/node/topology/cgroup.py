"""What the control groups of this process, version 1 or 2 or both, leave it: CPUs, memory, CPU time.

Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{cpusets,memory}.rst; proc(5) for
``/proc/self/mountinfo``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from mpiflux.node.topology.files import parse_list, read


def allowed_cpus(root: str) -> frozenset[int] | None:
    """CPUs that the cpuset controllers allow, None when none restricts."""
    allowed: frozenset[int] | None = None
    for version in (1, 2):
        wanted = ("cpuset.effective_cpus", "cpuset.cpus") if version == 1 else ("cpuset.cpus.effective",)
        for folder in _folders(root, version, "cpuset"):
            text = next(filter(None, (read(folder, name) for name in wanted)), "")
            if text:
                # the innermost value already lies within those further out
                cpus = parse_list(text)
                allowed = cpus if allowed is None else allowed & cpus
                break
    return allowed


def memory_limit(root: str) -> int | None:
    """The tightest memory limit in bytes, None when none is set. An outer group may be the tighter one."""
    limits: list[int] = []
    for version, name in ((1, "memory.limit_in_bytes"), (2, "memory.max")):
        texts = [read(folder, name) for folder in _folders(root, version, "memory")]
        limits += [int(text) for text in texts if text.isdecimal()]
    return min(limits, default=None)


def cpu_quota(root: str) -> float | None:
    """CPUs' worth of time that the tightest quota grants, None when none is set."""
    quotas: list[float] = []
    for folder in _folders(root, 2, "cpu"):
        quota, _, period = read(folder, "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            quotas.append(int(quota) / int(period))
    for folder in _folders(root, 1, "cpu"):
        quota, period = read(folder, "cpu.cfs_quota_us"), read(folder, "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _folders(root: str, version: int, controller: str) -> Iterator[str]:
    """Directories of this process's group and of the groups around it, innermost first."""
    path = _group(root, version, controller)
    mount = _mount(root, version, controller)
    if path is None or mount is None:
        return
    top, point = mount
    if top != "/":
        # a container sees its own group mounted as the top of the hierarchy
        path = path[len(top):] if path == top or path.startswith(top + "/") else "/"
    base = os.path.join(root, point.lstrip("/"))
    steps = [step for step in path.split("/") if step and step != ".."]
    for depth in range(len(steps), -1, -1):
        yield os.path.join(base, *steps[:depth])


def _group(root: str, version: int, controller: str) -> str | None:
    for line in read(root, "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (number == "0" and version == 2) or (version == 1 and controller in controllers.split(",")):
            return path
    return None


def _mount(root: str, version: int, controller: str) -> tuple[str, str] | None:
    """(group that is mounted, where) of a hierarchy."""
    for line in read(root, "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if len(before) < 5 or len(after) < 3:
            continue
        if (version == 2 and after[0] == "cgroup2") or (
                version == 1 and after[0] == "cgroup" and controller in after[2].split(",")):
            return before[3], before[4]
    return None
