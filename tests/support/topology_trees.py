"""Recorded-looking machines for the topology tests: what /proc, /sys and /dev say of them, as small files."""

from __future__ import annotations

from pathlib import Path


def text_list(cpus) -> str:
    return ",".join(map(str, sorted(cpus)))


def text_mask(cpus) -> str:
    value = sum(1 << cpu for cpu in set(cpus))
    words = []
    while value or not words:
        words.append(f"{value & 0xffffffff:08x}")
        value >>= 32
    return ",".join(reversed(words))


class Machine:
    """A file tree below ``root``. Both notations of every CPU set are written: hwloc reads masks, we read lists."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._nodes: dict[int, set[int]] = {}
        self.write("proc/meminfo", "MemTotal:       65536000 kB\nMemFree: 1 kB\n")
        self.write("proc/cpuinfo", "")
        self.write("proc/sys/kernel/hostname", "n017")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def write_set(self, path: str, mask_name: str, list_name: str, cpus) -> None:
        self.write(f"{path}/{mask_name}", text_mask(cpus))
        self.write(f"{path}/{list_name}", text_list(cpus))

    def cpus(self, packages: list[list[list[int]]], offline: set[int] = frozenset(),
             l3: list[set[int]] | None = None) -> Machine:
        """``packages`` are lists of cores, cores are lists of CPUs, SMT siblings included."""
        everyone = {cpu for cores in packages for core in cores for cpu in core}
        self.write("sys/devices/system/cpu/online", text_list(everyone - offline))
        self.write("sys/devices/system/cpu/possible", f"0-{max(everyone)}")
        self.write("sys/devices/system/cpu/present", f"0-{max(everyone)}")
        for package, cores in enumerate(packages):
            inside = {cpu for core in cores for cpu in core} - offline
            for number, core in enumerate(cores):
                for cpu in core:
                    self._cpu(cpu, package, number, set(core) - offline, inside, cpu in offline, l3 or [inside])
        return self

    def _cpu(self, cpu: int, package: int, number: int, core: set[int], inside: set[int], off: bool,
             l3: list[set[int]]) -> None:
        base = f"sys/devices/system/cpu/cpu{cpu}"
        self.write(f"{base}/online", "0" if off else "1")
        if off:
            return
        self.write(f"{base}/topology/physical_package_id", str(package))
        self.write(f"{base}/topology/core_id", str(number))
        for mask, name, cpus in (("core_cpus", "core_cpus_list", core),
                                 ("thread_siblings", "thread_siblings_list", core),
                                 ("package_cpus", "package_cpus_list", inside),
                                 ("core_siblings", "core_siblings_list", inside)):
            self.write_set(f"{base}/topology", mask, name, cpus)
        shared = next(s for s in l3 if cpu in s)
        for index, level, kind, cpus in ((0, 1, "Data", core), (2, 2, "Unified", core), (3, 3, "Unified", shared)):
            cache = f"{base}/cache/index{index}"
            for name, value in (("level", str(level)), ("type", kind), ("size", "1024K"),
                                ("coherency_line_size", "64"), ("number_of_sets", "1"), ("id", "0")):
                self.write(f"{cache}/{name}", value)
            self.write_set(cache, "shared_cpu_map", "shared_cpu_list", cpus)

    def numa(self, nodes: dict[int, set[int]]) -> Machine:
        self._nodes = nodes
        self.write("sys/devices/system/node/online", text_list(nodes))
        self.write("sys/devices/system/node/possible", text_list(nodes))
        for number, cpus in nodes.items():
            base = f"sys/devices/system/node/node{number}"
            self.write_set(base, "cpumap", "cpulist", cpus)
            self.write(f"{base}/meminfo", f"Node {number} MemTotal:       32768000 kB")
            self.write(f"{base}/distance", " ".join("10" if n == number else "21" for n in sorted(nodes)))
        return self

    def process(self, affinity: str = "", cgroup: str = "0::/\n", mounts: str = "") -> Machine:
        if affinity:
            self.write("proc/self/status", f"Name:\tpython\nCpus_allowed_list:\t{affinity}\n")
        self.write("proc/self/cgroup", cgroup)
        self.write("proc/self/mountinfo", mounts or "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
        return self

    def pci(self, busid: str, vendor: int, *, kind: int = 0x030200, numa: int = -1, drm=()) -> str:
        """A PCI device near NUMA node ``numa``, or near none."""
        local = self._nodes.get(numa) or set().union(*self._nodes.values())
        base = f"sys/devices/pci0000:00/{busid}"
        for name, value in (("class", f"{kind:#08x}"), ("vendor", f"{vendor:#06x}"), ("device", "0x1234"),
                            ("subsystem_vendor", "0x0000"), ("subsystem_device", "0x0000"),
                            ("numa_node", str(numa)), ("local_cpus", text_mask(local))):
            self.write(f"{base}/{name}", value)
        (self.root / base / "config").write_bytes(bytes(64))
        self._link(f"sys/bus/pci/devices/{busid}", f"../../../devices/pci0000:00/{busid}")
        for name in drm:
            self.write(f"{base}/drm/{name}/dev", "226:0")
            self._link(f"{base}/drm/{name}/device", "../..")
            self._link(f"sys/class/drm/{name}", f"../../devices/pci0000:00/{busid}/drm/{name}")
        return base

    def _link(self, path: str, target: str) -> None:
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)


def two_sockets(root: Path) -> Machine:
    """2 packages × 4 cores × 2 threads, siblings far apart, NUMA nodes 0 and 8, CPUs of packages interleaved."""
    packages = [[[c, c + 8] for c in (0, 2, 4, 6)], [[c, c + 8] for c in (1, 3, 5, 7)]]
    nodes = {0: {0, 2, 4, 6, 8, 10, 12, 14}, 8: {1, 3, 5, 7, 9, 11, 13, 15}}
    return Machine(root).cpus(packages).numa(nodes).process()


def sub_numa(root: Path) -> Machine:
    """One package of 8 cores, two NUMA nodes whose CPUs and L3 caches interleave, a node of memory only, CPU 5
    offline."""
    halves = {2: {0, 1, 4, 5}, 3: {2, 3, 6, 7}}
    machine = Machine(root).cpus([[[c] for c in range(8)]], offline={5}, l3=[s - {5} for s in halves.values()])
    return machine.numa({2: halves[2] - {5}, 3: halves[3], 9: set()}).process()
