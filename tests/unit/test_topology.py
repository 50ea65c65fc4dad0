"""What a rank finds: each source of knowledge against the others, and against recorded machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.node.topology import (
    SOURCES,
    Core,
    SourceFailed,
    SourceUnavailable,
    Topology,
    cgroup,
    discover,
    hwloc,
    load,
    partition_cores,
)
from mpiflux.node.topology.files import parse_list
from tests.support.topology_trees import Machine, sub_numa, text_list, two_sockets


def available(root: str) -> dict[str, object]:
    """What each installed source says of the machine; skips, by name, when only one is installed."""
    said: dict[str, object] = {}
    missing = []
    for source in SOURCES:
        try:
            said[source] = load(source, root)[0]
        except SourceUnavailable:
            missing.append(source)
    if len(said) < 2:
        pytest.skip(f"nothing to compare with: {' and '.join(missing)} not installed")
    return said


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> str:
    try:
        load(request.param, "/")
    except SourceUnavailable as error:
        pytest.skip(f"{request.param} not installed: {error}")
    return request.param


def found(machine: Machine, **options: object) -> Topology:
    options = {"source": "sysfs", "environ": {}, **options}
    return discover(root=str(machine.root), **options)


# -- the sources against each other ------------------------------------------------------------------------------


def test_sources_agree_on_this_machine() -> None:
    said = available("/")
    assert len(set(said.values())) == 1, said


@pytest.mark.parametrize("build", [two_sockets, sub_numa])
def test_sources_agree_on_recorded_machines(tmp_path: Path, build) -> None:
    machine = build(tmp_path)
    near = 8 if build is two_sockets else 2
    machine.pci("0000:3b:00.0", 0x10DE, numa=near, drm=("card1", "renderD128", "card1-DP-1"))
    machine.pci("0000:5b:00.0", 0x1002, kind=0x120000, drm=("card2", "renderD129"))
    machine.pci("0000:02:00.0", 0x1AF4, kind=0x010000)
    said = available(str(tmp_path))
    first = said["sysfs"]
    assert [(d.numa, d.names) for d in first.devices] == [
        (near, ("card1", "renderD128")), (-1, ("card2", "renderD129"))]
    for name, raw in said.items():
        assert raw == first, name


def test_sources_agree_on_where_a_device_is_beside_a_node_of_memory_only(tmp_path: Path) -> None:
    machine = Machine(tmp_path).cpus([[[0], [1]]]).numa({0: {0, 1}, 1: set()}).process()
    machine.pci("0000:3b:00.0", 0x10DE, numa=0)
    machine.pci("0000:5b:00.0", 0x10DE)
    for name, raw in available(str(tmp_path)).items():
        assert [device.numa for device in raw.devices] == [0, 0], name


def test_this_machine(source: str) -> None:
    topology = discover(source=source, environ={})
    assert topology.source == source
    assert {pu for core in topology.cores for pu in core.pus} == os.sched_getaffinity(0)
    assert topology.total_pus == os.sysconf("SC_NPROCESSORS_ONLN")
    assert 0 < topology.memory <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert topology.hostname == os.uname().nodename


def test_affinity_narrows_this_machine(source: str) -> None:
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("needs two CPUs")
    try:
        os.sched_setaffinity(0, {max(before)})
        topology = discover(source=source, environ={"OMPI_COMM_WORLD_RANK": "0"})
    finally:
        os.sched_setaffinity(0, before)
    assert [core.pus for core in topology.cores] == [(max(before),)]
    assert topology.cores[0].logical == 0
    assert any("--bind-to none" in note for note in topology.notes)


# -- order, NUMA, SMT, offline CPUs ------------------------------------------------------------------------------


def test_two_sockets(tmp_path: Path, source: str) -> None:
    topology = found(two_sockets(tmp_path), source=source)
    assert [core.pus for core in topology.cores] == [
        (0, 8), (2, 10), (4, 12), (6, 14), (1, 9), (3, 11), (5, 13), (7, 15)]
    assert [core.numa for core in topology.cores] == [0] * 4 + [8] * 4
    assert [core.logical for core in topology.cores] == list(range(8))
    assert (topology.total_pus, topology.hostname, topology.memory) == (16, "n017", 65536000 * 1024)


def test_sub_numa_offline_and_memory_only_node(tmp_path: Path, source: str) -> None:
    topology = found(sub_numa(tmp_path), source=source)
    assert [core.pus for core in topology.cores] == [(0,), (1,), (4,), (2,), (3,), (6,), (7,)]
    assert [core.numa for core in topology.cores] == [2, 2, 2, 3, 3, 3, 3]
    assert topology.total_pus == 7


def test_offline_sibling_leaves_its_core(tmp_path: Path, source: str) -> None:
    machine = Machine(tmp_path).cpus([[[0, 2], [1, 3]]], offline={2}).numa({0: {0, 1, 3}}).process()
    assert [core.pus for core in found(machine, source=source).cores] == [(0,), (1, 3)]


def test_kernel_that_tells_no_topology(tmp_path: Path) -> None:
    machine = Machine(tmp_path).process()
    machine.write("sys/devices/system/cpu/online", "0-2")
    assert found(machine).cores == (Core(0, (0,), 0), Core(1, (1,), 0), Core(2, (2,), 0))


# -- cgroup and affinity -----------------------------------------------------------------------------------------


def test_usable_is_cgroup_and_affinity(tmp_path: Path, source: str) -> None:
    machine = two_sockets(tmp_path).process(affinity="0-5,8-15", cgroup="0::/slurm/job_7/step_0\n")
    machine.write("sys/fs/cgroup/slurm/job_7/cpuset.cpus.effective", "0-3,8-11")
    machine.write("sys/fs/cgroup/cpuset.cpus.effective", "0-15")
    machine.write("proc/self/status", "Cpus_allowed_list:\t0-2,8,9,11")
    topology = found(machine, source=source)
    assert topology.cores == (Core(0, (0, 8), 0), Core(1, (2,), 0), Core(2, (1, 9), 8), Core(3, (11,), 8))
    assert topology.total_pus == 16


V1 = ("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
      "34 31 0:31 {top} /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
      "35 31 0:32 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
      "36 31 0:33 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n")
V1_GROUPS = "9:cpuset:{path}\n8:memory:{path}\n7:cpu,cpuacct:{path}\n0::/\n"


@pytest.mark.parametrize("in_container", [False, True])
def test_cgroup_version_1(tmp_path: Path, in_container: bool) -> None:
    machine = two_sockets(tmp_path).process(affinity="0-15", cgroup=V1_GROUPS.format(path="/box/a/b"),
                                            mounts=V1.format(top="/box/a" if in_container else "/"))
    below = "/b" if in_container else "/box/a/b"
    machine.write(f"sys/fs/cgroup/cpuset{below}/cpuset.effective_cpus", "1,9,2,10")
    machine.write(f"sys/fs/cgroup/memory{below}/memory.limit_in_bytes", "9223372036854771712")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", str(1 << 30))
    machine.write(f"sys/fs/cgroup/cpu,cpuacct{below}/cpu.cfs_quota_us", "150000")
    machine.write(f"sys/fs/cgroup/cpu,cpuacct{below}/cpu.cfs_period_us", "100000")
    topology = found(machine)
    assert [core.pus for core in topology.cores] == [(2, 10), (1, 9)]
    assert topology.memory == 1 << 30
    assert len(topology.notes) == 1
    assert "1.5 CPUs' worth" in topology.notes[0]
    assert "--cores-per-node 1 " in topology.notes[0]


def test_real_cpuset(source: str) -> None:
    if os.geteuid() != 0 or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs root and two CPUs")
    around = next(cgroup._folders("/", 1, "cpuset"), "")
    group = Path(around) / f"mpiflux-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cpuset hierarchy of version 1 to write to: {error}")
    cpu = max(os.sched_getaffinity(0))
    script = ("import sys; from mpiflux.node.topology import discover; open(sys.argv[1] + '/cgroup.procs', 'w')."
              "write('0'); t = discover(source=sys.argv[2], environ={}); print([c.pus for c in t.cores], t.total_pus)")
    try:
        (group / "cpuset.cpus").write_text(str(cpu))
        (group / "cpuset.mems").write_text((Path(around) / "cpuset.effective_mems").read_text())
        done = subprocess.run([sys.executable, "-c", script, str(group), source], check=True, capture_output=True,
                              text=True, env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))))
    finally:
        group.rmdir()
    assert done.stdout.strip() == f"[({cpu},)] {os.sysconf('SC_NPROCESSORS_ONLN')}"


def test_tightest_memory_limit_and_quota_of_version_2(tmp_path: Path) -> None:
    machine = two_sockets(tmp_path).process(cgroup="0::/a/b\n")
    for folder, memory, quota in (("a/b", "max", "max 100000"), ("a", str(3 << 30), "400000 100000"), ("", "", "")):
        machine.write(f"sys/fs/cgroup/{folder}/memory.max", memory)
        machine.write(f"sys/fs/cgroup/{folder}/cpu.max", quota)
    topology = found(machine)
    assert topology.memory == 3 << 30
    assert "4 CPUs' worth of time on 16 CPUs" in topology.notes[0]


def test_nothing_in_common_believes_the_affinity(tmp_path: Path) -> None:
    machine = two_sockets(tmp_path).process(affinity="3", cgroup="0::/\n")
    machine.write("sys/fs/cgroup/cpuset.cpus.effective", "0-1")
    topology = found(machine)
    assert [core.pus for core in topology.cores] == [(3,)]
    assert "none in common" in topology.notes[0]


# -- declared cores ----------------------------------------------------------------------------------------------


def test_fewer_cores_declared(tmp_path: Path) -> None:
    topology = found(two_sockets(tmp_path), cores_per_node=3)
    assert [core.pus for core in topology.cores] == [(0, 8), (2, 10), (4, 12)]
    assert topology.notes == ()


def test_more_cores_declared_are_pretended(tmp_path: Path) -> None:
    topology = found(two_sockets(tmp_path), cores_per_node=12)
    assert topology.cores[:8] == found(two_sockets(tmp_path / "again")).cores
    assert topology.cores[8:] == (Core(8, (), 0), Core(9, (), 0), Core(10, (), 8), Core(11, (), 8))
    assert topology.total_pus == 16
    assert "12 cores are declared, 8 are usable" in topology.notes[0]


@pytest.mark.parametrize(("options", "named"), [
    ({"cores_per_node": 0}, "--cores-per-node 0"), ({"gpus_per_node": -1}, "--gpus-per-node -1"),
    ({"source": "lstopo"}, "'lstopo'")])
def test_absurd_requests(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        discover(**options)


def test_slurm_names_the_node(tmp_path: Path) -> None:
    assert found(two_sockets(tmp_path), environ={"SLURMD_NODENAME": "nid0042"}).hostname == "nid0042"


# -- partition ---------------------------------------------------------------------------------------------------


def of_cores(count: int) -> Topology:
    return Topology("h", tuple(Core(i, (i,), 0) for i in range(count)), (), 0, "sysfs", count, ())


@given(st.integers(1, 300), st.integers(1, 300))
def test_partition_gives_each_core_one_owner(cores: int, ranks: int) -> None:
    topology = of_cores(cores)
    shares = [partition_cores(topology, ranks, rank) for rank in range(ranks)]
    assert [core for share in shares for core in share] == list(range(cores))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_partition_with_more_ranks_than_cores() -> None:
    assert [partition_cores(of_cores(2), 4, rank) for rank in range(4)] == [(), (0,), (), (1,)]


@pytest.mark.parametrize(("size", "rank"), [(2, 2), (2, -1), (0, 0)])
def test_partition_refuses_ranks_that_are_not_there(size: int, rank: int) -> None:
    with pytest.raises(ValueError, match=f"local rank {rank} of {size}"):
        partition_cores(of_cores(4), size, rank)


# -- formats -----------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 300)))
def test_kernel_lists(numbers: set[int]) -> None:
    assert parse_list(text_list(numbers)) == numbers


def test_kernel_lists_with_runs_and_steps() -> None:
    assert parse_list("0-3,8, 10-14:2") == {0, 1, 2, 3, 8, 10, 12, 14}


@given(st.sets(st.integers(0, 200)))
def test_hwloc_bitmaps(numbers: set[int]) -> None:
    value = sum(1 << n for n in numbers)
    words = [value >> shift & 0xFFFFFFFF for shift in range(192, -1, -32)]
    text = ",".join("" if word == 0 else f"0x{word:08x}" for word in words).lstrip(",")
    assert hwloc.bits(text) == tuple(sorted(numbers))


@pytest.mark.parametrize("xml", ["", "<topology version='2.0'></topology>", "not xml"])
def test_hwloc_xml_that_is_none(xml: str) -> None:
    with pytest.raises(ValueError, match="hwloc's XML"):
        hwloc.parse(xml)


# -- the child process -------------------------------------------------------------------------------------------


def test_libraries_stay_out_of_this_process(source: str) -> None:
    if source == "sysfs":
        pytest.skip("sysfs loads no library")
    script = ("import os, sys; from mpiflux.node.topology import discover; before = dict(os.environ); "
              f"discover(source={source!r}); assert dict(os.environ) == before; "
              "assert 'hwloc' not in open('/proc/self/maps').read(); "
              "assert not {'ctypes', 'pyhwloc', 'xml', 'numpy'} & set(sys.modules), sys.modules.keys()")
    subprocess.run([sys.executable, "-c", script], check=True, env=dict(os.environ, PYTHONPATH=os.pathsep.join(
        filter(None, sys.path))))


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize("broken", ["crash", "hang", "lie", "raise"])
def test_a_library_that_breaks_is_survived(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def export() -> str:
        if broken == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        while broken == "hang":
            signal.pause()
        if broken == "raise":
            raise OSError(5, "hwloc_topology_load")
        return "<topology/>"

    monkeypatch.setattr(hwloc, "_export_libhwloc", export)
    fds, before = set(os.listdir("/proc/self/fd")), children()
    words = {"crash": "signal 9", "hang": "longer than 0.2 s", "lie": "no core", "raise": "hwloc_topology_load"}
    with pytest.raises(SourceFailed, match=words[broken]):
        hwloc.load("libhwloc", "/", timeout=0.2 if broken == "hang" else 30)
    assert set(os.listdir("/proc/self/fd")) == fds
    assert children() == before


def test_auto_goes_on_to_sysfs_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise OSError(5, "no such luck")

    monkeypatch.setattr(hwloc, "_export_libhwloc", fail)
    monkeypatch.setattr(hwloc, "_export_pyhwloc", fail)
    topology = discover(environ={})
    assert topology.source == "sysfs"
    tried = ["libhwloc"] if sys.version_info < (3, 12) else ["pyhwloc", "libhwloc"]
    assert [note.partition(":")[0] for note in topology.notes if "no such luck" in note] == tried


def test_a_source_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hwloc, "SONAME", "libhwloc-not-there.so.15")
    with pytest.raises(SourceUnavailable, match="libhwloc15"):
        discover(source="libhwloc")
