"""The data that discovery hands out, and the raw structure that its backends share."""

from __future__ import annotations

from typing import NamedTuple


class Core(NamedTuple):
    """One usable core."""

    logical: int
    """Position among the usable cores of this machine, 0…n-1, in hwloc's order (see docs of :func:`discover`)."""
    pus: tuple[int, ...]
    """Kernel CPU numbers of its usable hardware threads, rising. Empty: the core is only declared, bind nothing."""
    numa: int
    """Kernel number of its NUMA node. Numbers need not be contiguous."""


class Gpu(NamedTuple):
    """One usable GPU."""

    number: int
    """What jobs of ours call it, 0…n-1."""
    vendor: str
    """``nvidia``, ``amd``, ``intel``, ``unknown`` (named by an allocation, maker not seen) or ``declared``."""
    id: str
    """What stands for it in its vendor's visible-devices variable: an index or a UUID."""
    numa: int
    """Kernel number of the NUMA node that it hangs on, -1 where not known."""
    name: str
    """Model, for people; may be empty."""


class Topology(NamedTuple):
    """What a rank may use of its machine."""

    hostname: str
    cores: tuple[Core, ...]
    gpus: tuple[Gpu, ...]
    memory: int
    """Bytes: the machine's, or the tightest cgroup limit when that is less."""
    source: str
    """Who knew about the cores: ``pyhwloc``, ``libhwloc`` or ``sysfs``."""
    total_pus: int
    """Hardware threads online in the whole machine, usable or not."""
    notes: tuple[str, ...]
    """Sentences that a person should hear."""


class RawCore(NamedTuple):
    pus: tuple[int, ...]
    numa: int


class RawDevice(NamedTuple):
    """A PCI display controller or accelerator."""

    busid: str
    """``domain:bus:device.function``, lower case hexadecimal."""
    vendor: int
    numa: int
    names: tuple[str, ...]
    """OS devices that drivers made of it (``card0``, ``renderD128``), sorted."""


class Raw(NamedTuple):
    """The whole machine as one backend sees it, whoever may use it; equal for all backends."""

    cores: tuple[RawCore, ...]
    devices: tuple[RawDevice, ...]


class SourceUnavailable(Exception):
    """This backend's library is not installed."""


class SourceFailed(Exception):
    """This backend is there and did not work."""
