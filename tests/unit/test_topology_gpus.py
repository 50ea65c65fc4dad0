"""GPUs: what allocations say, what drivers show, and what a job is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.node.topology import GPU_VARIABLES, Gpu, discover, gpu_environment
from tests.support.topology_trees import Machine, two_sockets


def gpus(machine: Machine, environ: dict[str, str] | None = None, **options: object) -> tuple[Gpu, ...]:
    return discover(root=str(machine.root), source="sysfs", environ=environ or {}, **options).gpus


def notes(machine: Machine, environ: dict[str, str], **options: object) -> tuple[str, ...]:
    return discover(root=str(machine.root), source="sysfs", environ=environ, **options).notes


def nvidia(root: Path, count: int = 4, models: tuple[str, ...] = ("NVIDIA H100",)) -> Machine:
    """Two GPUs a socket; NUMA node 8 has those of the lower bus ids, and minors run against bus ids."""
    machine = two_sockets(root)
    for i in range(count):
        busid = f"0000:{0x10 + 0x10 * i:02x}:00.0"
        machine.pci(busid, 0x10DE, numa=8 if i < 2 else 0)
        minor = count - 1 - i
        machine.write(f"proc/driver/nvidia/gpus/{busid}/information",
                      f"Model: \t\t {models[i % len(models)]}\nIRQ:   \t\t 120\n"
                      f"GPU UUID: \t GPU-{i}{i}{i}{i}aaaa-0000\nDevice Minor: \t {minor}")
        machine.write(f"dev/nvidia{minor}", "")
    machine.write("dev/nvidiactl", "")
    machine.write("dev/nvidia-uvm", "")
    return machine


# -- what drivers show -------------------------------------------------------------------------------------------


def test_no_gpu(tmp_path: Path) -> None:
    machine = two_sockets(tmp_path)
    for i, vendor in enumerate((0x1234, 0x1AF4, 0x1A03, 0x102B)):
        machine.pci(f"0000:00:0{i + 1}.0", vendor, kind=0x030000, drm=(f"card{i}", f"renderD{128 + i}"))
    assert gpus(machine) == ()


def test_nvidia_in_bus_order(tmp_path: Path) -> None:
    assert gpus(nvidia(tmp_path)) == tuple(
        Gpu(i, "nvidia", str(i), numa, "NVIDIA H100") for i, numa in enumerate((8, 8, 0, 0)))


def test_nvidia_of_several_models_by_uuid(tmp_path: Path) -> None:
    found = gpus(nvidia(tmp_path, 2, ("NVIDIA H100", "NVIDIA T4")))
    assert [(gpu.id, gpu.name) for gpu in found] == [
        ("GPU-0000aaaa-0000", "NVIDIA H100"), ("GPU-1111aaaa-0000", "NVIDIA T4")]


def test_nvidia_container_sees_some(tmp_path: Path) -> None:
    machine = nvidia(tmp_path)
    (tmp_path / "dev/nvidia3").unlink()
    (tmp_path / "dev/nvidia1").unlink()
    assert [(gpu.number, gpu.id, gpu.numa) for gpu in gpus(machine)] == [(0, "0", 8), (1, "1", 0)]


def test_nvidia_without_proc(tmp_path: Path) -> None:
    machine = two_sockets(tmp_path)
    for minor in (0, 1, 10):
        machine.write(f"dev/nvidia{minor}", "")
    machine.write("dev/nvidiactl", "")
    assert [(gpu.vendor, gpu.id, gpu.numa) for gpu in gpus(machine)] == [("nvidia", str(i), -1) for i in range(3)]


def test_amd_in_kfd_order(tmp_path: Path) -> None:
    machine = two_sockets(tmp_path)
    machine.pci("0000:c1:00.0", 0x1002, kind=0x038000, numa=0, drm=("card1", "renderD129"))
    machine.pci("0000:41:00.0", 0x1002, kind=0x038000, numa=8, drm=("card0", "renderD128"))
    base = "sys/class/kfd/kfd/topology/nodes"
    machine.write(f"{base}/0/properties", "cpu_cores_count 8\nsimd_count 0")
    for node, bus, minor in ((2, 0xC1, 129), (10, 0x41, 128)):
        machine.write(f"{base}/{node}/properties", f"cpu_cores_count 0\nsimd_count 440\nlocation_id {bus << 8}\n"
                                                   f"domain 0\ndrm_render_minor {minor}")
        machine.write(f"{base}/{node}/name", "gfx90a")
    assert gpus(machine) == (Gpu(0, "amd", "0", 0, "gfx90a"), Gpu(1, "amd", "1", 8, "gfx90a"))


def test_amd_without_kfd(tmp_path: Path) -> None:
    machine = two_sockets(tmp_path)
    machine.pci("0000:41:00.0", 0x1002, numa=8, drm=("card0", "renderD128"))
    machine.pci("0000:42:00.0", 0x1002, numa=8, drm=("card1",))
    assert gpus(machine) == (Gpu(0, "amd", "0", 8, ""),)


def test_intel_discrete_only_and_tiles(tmp_path: Path) -> None:
    machine = two_sockets(tmp_path)
    machine.pci("0000:00:02.0", 0x8086, kind=0x030000, drm=("card0", "renderD128"))
    base = machine.pci("0000:18:00.0", 0x8086, kind=0x038000, numa=8, drm=("card1", "renderD129"))
    machine.write(f"{base}/tile0/id", "0")
    machine.write(f"{base}/tile1/id", "1")
    assert [(gpu.vendor, gpu.id, gpu.numa) for gpu in gpus(machine)] == [("intel", "0", 8), ("intel", "1", 8)]
    assert len(gpus(machine, {"ZE_FLAT_DEVICE_HIERARCHY": "COMPOSITE"})) == 1


# -- what allocations say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "ids"), [
    ("2,0", ["2", "0"]), ("", []), ("-1", []), ("NoDevFiles", []), ("0,-1,1", ["0"]), ("1,1", ["1"]),
    ("GPU-2222aaaa-0000", ["GPU-2222aaaa-0000"]), ("MIG-41f1-00,MIG-41f1-01", ["MIG-41f1-00", "MIG-41f1-01"])])
def test_cuda_visible_devices(tmp_path: Path, value: str, ids: list[str]) -> None:
    found = gpus(nvidia(tmp_path), {"CUDA_VISIBLE_DEVICES": value})
    assert [gpu.id for gpu in found] == ids
    assert [gpu.number for gpu in found] == list(range(len(ids)))
    assert all(gpu.vendor == "nvidia" for gpu in found)


def test_named_gpus_keep_their_place(tmp_path: Path) -> None:
    machine = nvidia(tmp_path)
    assert [gpu.numa for gpu in gpus(machine, {"CUDA_VISIBLE_DEVICES": "3,0"})] == [0, 8]
    assert [gpu.numa for gpu in gpus(machine, {"CUDA_VISIBLE_DEVICES": "GPU-2222,GPU-1111"})] == [0, 8]


def test_slurm_renumbers_in_a_cgroup(tmp_path: Path) -> None:
    (gpu,) = gpus(nvidia(tmp_path), {"CUDA_VISIBLE_DEVICES": "0", "SLURM_STEP_GPUS": "2", "SLURM_JOB_GPUS": "0-3"})
    assert (gpu.id, gpu.numa) == ("0", 0)


@pytest.mark.parametrize(("environ", "ids"), [
    ({"SLURM_STEP_GPUS": "1,2", "SLURM_JOB_GPUS": "0-3"}, ["1", "2"]), ({"SLURM_JOB_GPUS": "0-2"}, ["0", "1", "2"]),
    ({"SLURM_GPUS_ON_NODE": "2"}, ["0", "1"]), ({"SLURM_STEP_GPUS": ""}, []), ({"SLURM_JOB_GPUS": "NoDevFiles"}, []),
    ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "3"}, ["3"])])
def test_slurm_alone(tmp_path: Path, environ: dict[str, str], ids: list[str]) -> None:
    assert [gpu.id for gpu in gpus(nvidia(tmp_path), environ)] == ids


def test_batch_job_without_gpus_uses_what_opens(tmp_path: Path) -> None:
    machine = nvidia(tmp_path)
    environ = {"SLURM_JOB_ID": "7"}
    assert len(gpus(machine, environ)) == 4
    assert "--gpus-per-node 0" in notes(machine, environ)[0]
    for minor in range(4):
        # opening a directory for writing fails for root too, as a device cgroup's ban does
        (tmp_path / f"dev/nvidia{minor}").unlink()
        (tmp_path / f"dev/nvidia{minor}").mkdir()
    assert gpus(machine, environ) == ()
    assert notes(machine, environ) == ()


def amd(root: Path) -> Machine:
    machine = two_sockets(root)
    for i in range(4):
        machine.pci(f"0000:4{i}:00.0", 0x1002, numa=8, drm=(f"card{i}", f"renderD{128 + i}"))
    return machine


@pytest.mark.parametrize(("environ", "ids"), [
    ({"ROCR_VISIBLE_DEVICES": "2,3"}, ["2", "3"]), ({"HIP_VISIBLE_DEVICES": "1"}, ["1"]),
    ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, ["3"]),
    ({"ROCR_VISIBLE_DEVICES": "2,3", "GPU_DEVICE_ORDINAL": "2,3"}, ["2", "3"]),
    ({"CUDA_VISIBLE_DEVICES": "1"}, ["1"]), ({"ROCR_VISIBLE_DEVICES": ""}, []),
    ({"ZE_AFFINITY_MASK": "0"}, ["0", "1", "2", "3"])])
def test_amd_selections(tmp_path: Path, environ: dict[str, str], ids: list[str]) -> None:
    assert [gpu.id for gpu in gpus(amd(tmp_path), environ)] == ids


@pytest.mark.parametrize(("environ", "expected"), [
    ({"CUDA_VISIBLE_DEVICES": "0,1"}, [("nvidia", "0"), ("nvidia", "1")]),
    ({"ROCR_VISIBLE_DEVICES": "1"}, [("amd", "1")]),
    ({"HIP_VISIBLE_DEVICES": "1"}, [("amd", "1")]),
    ({"ZE_AFFINITY_MASK": "0.1"}, [("intel", "0.1")]),
    ({"ZE_AFFINITY_MASK": ""}, []), ({"CUDA_VISIBLE_DEVICES": ""}, []),
    ({"SLURM_STEP_GPUS": "0,1"}, [("unknown", "0"), ("unknown", "1")]),
    # Slurm without AutoDetect sets all of them alike
    (dict.fromkeys(GPU_VARIABLES, "0,1"), [("unknown", "0"), ("unknown", "1")]),
    ({"CUDA_VISIBLE_DEVICES": "1", "ZE_AFFINITY_MASK": "0"}, [("nvidia", "1")])])
def test_named_where_no_driver_shows_any(tmp_path: Path, environ, expected) -> None:
    machine = two_sockets(tmp_path)
    assert [(gpu.vendor, gpu.id) for gpu in gpus(machine, environ)] == expected
    assert len(notes(machine, environ)) == bool(expected)


# -- declared ----------------------------------------------------------------------------------------------------


def test_declared_beside_found(tmp_path: Path) -> None:
    machine = nvidia(tmp_path)
    assert len(gpus(machine, gpus_per_node=2)) == 2
    assert gpus(machine, gpus_per_node=0) == ()
    more = gpus(machine, {"CUDA_VISIBLE_DEVICES": "2"}, gpus_per_node=3)
    assert [(gpu.number, gpu.vendor, gpu.id, gpu.numa) for gpu in more] == [
        (0, "nvidia", "2", 0), (1, "declared", "0", 0), (2, "declared", "1", 8)]


def test_declared_where_there_is_none(tmp_path: Path) -> None:
    machine = two_sockets(tmp_path)
    assert [(gpu.id, gpu.numa) for gpu in gpus(machine, gpus_per_node=4)] == [("0", 0), ("1", 0), ("2", 8), ("3", 8)]
    assert "4 GPUs are declared, 0 are seen" in notes(machine, {}, gpus_per_node=4)[0]


# -- a job's environment -----------------------------------------------------------------------------------------


def of(vendor: str, *ids: str) -> tuple[Gpu, ...]:
    return tuple(Gpu(i, vendor, name, -1, "") for i, name in enumerate(ids))


@pytest.mark.parametrize(("job", "node", "expected"), [
    (of("nvidia", "3", "GPU-a"), of("nvidia", "3", "GPU-a", "1"), {"CUDA_VISIBLE_DEVICES": "3,GPU-a"}),
    ((), of("nvidia", "0"), {"CUDA_VISIBLE_DEVICES": ""}),
    (of("amd", "1"), (), {"ROCR_VISIBLE_DEVICES": "1"}),
    ((), of("amd", "1"), {"ROCR_VISIBLE_DEVICES": ""}),
    (of("intel", "0.1"), (), {"ZE_AFFINITY_MASK": "0.1"}),
    # empty would show all of them
    ((), of("intel", "0"), {"ZE_AFFINITY_MASK": "65535"}),
    (of("amd", "0"), of("amd", "0") + of("nvidia", "0"), {"ROCR_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": ""}),
    (of("declared", "1"), (), dict.fromkeys(("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"), "1")),
    ((), (), {})])
def test_gpu_environment(job, node, expected) -> None:
    assert gpu_environment(job, node) == expected


@given(st.lists(st.sampled_from(["nvidia", "amd", "intel", "unknown", "declared"]), max_size=6), st.data())
def test_a_job_sees_its_gpus_and_no_other_ones(vendors: list[str], data: st.DataObject) -> None:
    node = tuple(Gpu(i, vendor, f"{i}", -1, "") for i, vendor in enumerate(vendors))
    job = tuple(gpu for gpu in node if data.draw(st.booleans()))
    shown = gpu_environment(job, node)
    seen = {name for value in shown.values() for name in value.split(",")} - {"", "65535"}
    assert seen == {gpu.id for gpu in job}
    assert bool(shown) == bool(node)
