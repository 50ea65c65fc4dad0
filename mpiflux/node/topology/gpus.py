"""The GPUs that a rank may use, and the variables that show a job its own ones.

What an allocation says of itself in the environment comes first; where it says nothing, what the drivers show:

- NVIDIA: ``/proc/driver/nvidia/gpus``, as far as their ``/dev/nvidiaN`` exist here, else those alone. In order of
  PCI bus id, as CUDA numbers GPUs of one model.
- AMD: the nodes of ``/sys/class/kfd``, in its order, which is ROCm's; without it, devices with a render node.
- Intel: devices with a render node that are not on PCI bus 0. Bus 0 is where integrated graphics sit; Arc, Flex and
  Max cards are behind a bridge. A card of several tiles counts once a tile unless ``ZE_FLAT_DEVICE_HIERARCHY`` is
  ``COMPOSITE``, as Level Zero numbers them.
- Other makers' display controllers (bochs, virtio, ASPEED, Matrox, VMware…) compute nothing and are left out.

Sources: CUDA C++ Programming Guide, "CUDA Environment Variables"; ROCm's "GPU isolation techniques"; the Level Zero
specification, "Environment Variables"; Slurm's gres.conf(5) and srun(1).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mpiflux.node.topology.files import names, numbered, parse_list, read
from mpiflux.node.topology.types import Gpu, RawDevice

CUDA, ROCR, ZE = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"

GPU_VARIABLES = (CUDA, ROCR, ZE, "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
"""Take all of these out of a job's environment before :func:`gpu_environment` is put in. HIP counts the last two,
and on AMD the first, within what ``ROCR_VISIBLE_DEVICES`` left: an inherited one would select a second time."""

_VENDOR_IDS = {0x10DE: "nvidia", 0x1002: "amd", 0x8086: "intel"}
_VARIABLES = {"nvidia": (CUDA,), "amd": (ROCR,), "intel": (ZE,)}
_ANY = (CUDA, ROCR, ZE)
_HIP = ("HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", CUDA)

# An empty ZE_AFFINITY_MASK means all devices; one that names only devices that do not exist means none.
_HIDDEN = {CUDA: "", ROCR: "", ZE: "65535"}

_BATCH = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID")

_KFD = "sys/class/kfd/kfd/topology/nodes"
_NVIDIA = "proc/driver/nvidia/gpus"


class Found(NamedTuple):
    """A GPU that a driver shows."""

    vendor: str
    ordinal: int
    """Its number in its vendor's own order."""
    uuid: str
    busid: str
    numa: int
    name: str
    device_file: str
    """Below the root; empty when not known."""


def gpu_environment(gpus: Sequence[Gpu], node: Sequence[Gpu] = ()) -> dict[str, str]:
    """The variables of a job that has exactly ``gpus`` of the GPUs ``node`` of its machine.

    Vendors that the machine has and the job does not get a value that hides them; a machine without GPUs sets
    nothing. GPUs of a maker that is not known are named in all three vendors' variables. AMD's are named in
    ``ROCR_VISIBLE_DEVICES`` only, since HIP's own variable would select once more from what that leaves.
    """
    variables: dict[str, str] = {}
    for gpu in (*gpus, *node):
        for name in _VARIABLES.get(gpu.vendor, _ANY):
            if name not in variables:
                ids = [g.id for g in gpus if name in _VARIABLES.get(g.vendor, _ANY)]
                variables[name] = ",".join(ids) or _HIDDEN[name]
    return variables


def discover_gpus(devices: Sequence[RawDevice], environ: Mapping[str, str],
                  root: str) -> tuple[tuple[Gpu, ...], list[str]]:
    """(GPUs that this rank may use, notes for a person). ``devices`` are a backend's, ``root`` holds ``sys``."""
    notes: list[str] = []
    found = _found_nvidia(devices, root) + _found_amd(devices, root) + _found_intel(devices, environ, root)
    vendors = list(dict.fromkeys(gpu.vendor for gpu in found))
    named: list[Gpu] = []
    silent: list[Found] = []
    for vendor in vendors:
        own = [gpu for gpu in found if gpu.vendor == vendor]
        ids = _named_for(vendor, environ)
        if ids is None and len(vendors) == 1:
            ids = _named_by_slurm(environ)
        if ids is None:
            silent += own
        else:
            named += _look_up(vendor, ids, own, environ)
    if not vendors:
        named = _unseen(environ)
        if named:
            notes.append(f"the environment names {len(named)} GPU(s) that no driver on this machine shows; "
                         "they are used as named")
    elif silent and any(name in environ for name in _BATCH):
        mine = [gpu for gpu in silent if _may_open(root, gpu.device_file)]
        if mine:
            notes.append(f"the allocation names no GPU, this machine shows {len(mine)} that can be opened; "
                         "they are used. If they are not yours, say --gpus-per-node 0")
        silent = mine
    named += [Gpu(0, gpu.vendor, _own_id(gpu, silent), gpu.numa, gpu.name) for gpu in silent]
    return tuple(gpu._replace(number=i) for i, gpu in enumerate(named)), notes


def declare(gpus: tuple[Gpu, ...], count: int, nodes: Sequence[int]) -> tuple[tuple[Gpu, ...], str]:
    """(exactly ``count`` GPUs, a note or nothing): the first ones found, and declared ones spread over the NUMA
    ``nodes`` when there are fewer."""
    if count <= len(gpus):
        return gpus[:count], ""
    extra = count - len(gpus)
    taken = {gpu.id for gpu in gpus}
    free = (str(i) for i in range(count + len(taken)) if str(i) not in taken)
    more = tuple(Gpu(len(gpus) + i, "declared", next(free), nodes[i * len(nodes) // extra], "declared")
                 for i in range(extra))
    return gpus + more, f"{count} GPUs are declared, {len(gpus)} are seen: nothing checks that the others exist"


def _found_nvidia(devices: Sequence[RawDevice], root: str) -> list[Found]:
    minors = numbered(names(root, "dev"), "nvidia")
    numa = {device.busid: device.numa for device in devices}
    found: list[Found] = []
    for busid in names(root, _NVIDIA):
        lines = read(root, _NVIDIA, busid, "information").splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        minor = fields.get("Device Minor", "")
        # a container shows all GPUs of its host in /proc and only its own in /dev
        if minors and minor.isdecimal() and int(minor) not in minors:
            continue
        uuid = fields.get("GPU UUID", "")
        found.append(Found("nvidia", len(found), "" if "?" in uuid else uuid, busid.lower(),
                           numa.get(busid.lower(), -1), fields.get("Model", ""), f"dev/nvidia{minor}"))
    if found:
        return found
    # without /proc, which minor is which device is a guess; with one for each it is the PCI order
    known = [device for device in devices if _VENDOR_IDS.get(device.vendor) == "nvidia"]
    places = [d.numa for d in known] if len(known) == len(minors) else [-1] * len(minors)
    return [Found("nvidia", i, "", "", place, "", f"dev/nvidia{minor}")
            for i, (minor, place) in enumerate(zip(minors, places, strict=True))]


def _found_amd(devices: Sequence[RawDevice], root: str) -> list[Found]:
    numa = {device.busid: device.numa for device in devices}
    found: list[Found] = []
    nodes = numbered(names(root, _KFD), "")
    for node in nodes:
        lines = read(root, _KFD, str(node), "properties").splitlines()
        fields = {key: int(value) for key, _, value in (line.partition(" ") for line in lines) if value.isdecimal()}
        if not fields.get("simd_count"):
            continue
        place = fields.get("location_id", 0)
        busid = f"{fields.get('domain', 0):04x}:{place >> 8 & 0xff:02x}:{place >> 3 & 0x1f:02x}.{place & 7}"
        found.append(Found("amd", len(found), "", busid, numa.get(busid, -1), read(root, _KFD, str(node), "name"),
                           f"dev/dri/renderD{fields.get('drm_render_minor', 0)}"))
    return found if nodes else _found_rendering("amd", devices)


def _found_intel(devices: Sequence[RawDevice], environ: Mapping[str, str], root: str) -> list[Found]:
    found: list[Found] = []
    for gpu in _found_rendering("intel", [d for d in devices if d.busid.split(":")[1:2] != ["00"]]):
        tiles = 1
        if environ.get("ZE_FLAT_DEVICE_HIERARCHY") != "COMPOSITE":
            folder = f"sys/bus/pci/devices/{gpu.busid}"
            card = next((name for name in names(root, folder, "drm") if name.startswith("card")), "card")
            # the drivers xe and i915 each have their own place for them
            tiles = max(1, len(numbered(names(root, folder), "tile")),
                        len(numbered(names(root, folder, "drm", card, "gt"), "gt")))
        found += [gpu._replace(ordinal=len(found) + i) for i in range(tiles)]
    return found


def _found_rendering(vendor: str, devices: Sequence[RawDevice]) -> list[Found]:
    found: list[Found] = []
    for device in devices:
        node = next((name for name in device.names if name.startswith("renderD")), "")
        if node and _VENDOR_IDS.get(device.vendor) == vendor:
            found.append(Found(vendor, len(found), "", device.busid, device.numa, "", f"dev/dri/{node}"))
    return found


def _named_for(vendor: str, environ: Mapping[str, str]) -> list[str] | None:
    """Ids that the vendor's own variables name, None when they are not set."""
    if vendor == "nvidia":
        return _ids(environ.get(CUDA))
    if vendor == "intel":
        return _ids(environ.get(ZE) or None)
    outer = _ids(environ.get(ROCR))
    inner = next((ids for name in _HIP if (ids := _ids(environ.get(name))) is not None), None)
    if outer is None or inner is None or outer == inner:
        return inner if outer is None else outer
    return [outer[int(i)] for i in inner if i.isdecimal() and int(i) < len(outer)]


def _named_by_slurm(environ: Mapping[str, str]) -> list[str] | None:
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if name in environ:
            try:
                return [str(i) for i in sorted(parse_list(environ[name]))]
            except ValueError:
                return _ids(environ[name])
    count = environ.get("SLURM_GPUS_ON_NODE", "")
    return [str(i) for i in range(int(count))] if count.isdecimal() else None


def _unseen(environ: Mapping[str, str]) -> list[Gpu]:
    """GPUs that the environment names though no driver shows any."""
    others = {name: value for name, value in environ.items() if name != CUDA}
    said = {vendor: ids for vendor in _VARIABLES
            if (ids := _named_for(vendor, environ if vendor == "nvidia" else others)) is not None}
    if not said:
        return [Gpu(0, "unknown", i, -1, "") for i in _named_by_slurm(environ) or []]
    first = next(iter(said))
    # Slurm without knowledge of the maker sets the variables of all of them alike
    vendor = first if len(said) == 1 or any(ids != said[first] for ids in said.values()) else "unknown"
    return [Gpu(0, vendor, i, -1, "") for i in said[first]]


def _ids(text: str | None) -> list[str] | None:
    """The devices that a visible-devices variable names. As in CUDA, what follows an invalid entry does not count;
    ``-1``, ``NoDevFiles`` and the empty text name none."""
    if text is None:
        return None
    ids: list[str] = []
    for entry in (part.strip() for part in text.split(",")):
        if not (entry.replace(".", "", 2).isdecimal() or entry.startswith(("GPU-", "MIG-"))):
            break
        if entry not in ids:
            ids.append(entry)
    return ids


def _look_up(vendor: str, ids: Iterable[str], found: Sequence[Found], environ: Mapping[str, str]) -> list[Gpu]:
    ids = list(ids)
    # where a cgroup renumbers devices from 0, Slurm still tells their numbers on the machine
    real = _named_by_slurm({k: v for k, v in environ.items() if k != "SLURM_GPUS_ON_NODE"}) or []
    places = real if len(real) == len(ids) else ids
    gpus = []
    for name, place in zip(ids, places, strict=True):
        match = next((f for f in found if f.uuid and (f.uuid.startswith(name) or f.uuid in name)), None)
        if match is None and place.partition(".")[0].isdecimal():
            match = next((f for f in found if f.ordinal == int(place.partition(".")[0])), None)
        gpus.append(Gpu(0, vendor, name, match.numa if match else -1, match.name if match else ""))
    return gpus


def _own_id(gpu: Found, all_found: Sequence[Found]) -> str:
    """The index, which every program understands, except where CUDA would number the fastest first."""
    models = {other.name for other in all_found if other.vendor == gpu.vendor}
    return gpu.uuid if gpu.uuid and len(models) > 1 else str(gpu.ordinal)


def _may_open(root: str, path: str) -> bool:
    """Whether the device file may be used: a cgroup's ban shows only when it is opened."""
    try:
        os.close(os.open(os.path.join(root, path), os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True
