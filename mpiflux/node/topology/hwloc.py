"""The machine through hwloc: the ``pyhwloc`` package, or the system's library by ctypes.

Both load the topology and export it as hwloc's own XML, which one parser reads: no C structure's layout is assumed,
and versions 2 and 3 of hwloc differ in one attribute only.

The library is loaded in a short-lived child process, because in the rank itself it would do harm: ``pyhwloc`` puts
its hwloc 3 into the global symbol scope and ``HWLOC_PLUGINS_PATH`` into the environment, where an MPI library built
on hwloc 2 would find them; any libhwloc loaded first stands in for the one that MPI was built with; and plugins
run vendors' drivers, which have been seen to crash and to hang.
"""

from __future__ import annotations

import marshal
import os
import resource
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from mpiflux.node.topology.types import Raw, RawCore, RawDevice, SourceFailed, SourceUnavailable

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

TIMEOUT = 30.0
"""Seconds after which a load is given up."""

SONAME = "libhwloc.so.15"
"""The ABI of every hwloc 2.x."""

_INCLUDE_DISALLOWED = 1
# the kernel's GPU devices do not count as important
_KEEP_ALL = 0

# These plugins start a vendor's whole runtime, or ask an X server, once a rank; what they would add is told by the
# kernel as well.
_UNWANTED_PLUGINS = "-gl,-opencl,-cuda,-levelzero"

_IO_OBJECTS = frozenset(("Bridge", "PCIDev", "OSDev", "Misc"))


def load(source: str, root: str, timeout: float = TIMEOUT) -> Raw:
    """The machine as ``source``, ``pyhwloc`` or ``libhwloc``, sees it; ``root`` holds the ``sys`` to look at.

    Raises SourceUnavailable when it is not installed, SourceFailed when it broke or took longer than ``timeout``
    seconds. Forks: call it before MPI is initialised and before threads are started.
    """
    if source == "pyhwloc" and sys.version_info < (3, 12):
        # no fork, and no search of a shared file system, for what cannot be there
        raise SourceUnavailable("pyhwloc needs Python 3.12")
    answer, status = _ask_child(source, root, timeout)
    if status is None:
        raise SourceFailed(f"{source} took longer than {timeout:g} s")
    try:
        kind, value = marshal.loads(answer)
    except (EOFError, ValueError, TypeError):
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status}"
        raise SourceFailed(f"{source} broke ({how})") from None
    if kind == "missing":
        raise SourceUnavailable(value)
    if kind == "failed":
        raise SourceFailed(f"{source}: {value}")
    cores, devices = value
    return Raw(tuple(RawCore(*core) for core in cores), tuple(RawDevice(*device) for device in devices))


def parse(xml: str) -> Raw:
    """A machine from hwloc's XML export, of version 2 or 3. Raises ValueError when it is not one."""
    from xml.etree import ElementTree

    try:
        top = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise ValueError(f"not hwloc's XML: {error}") from None
    version = int(top.get("version", "2.0").partition(".")[0])
    # enum hwloc_obj_osdev_type_e became a bit mask in version 3; GPU and co-processor in either
    gpu_types = frozenset(("4", "8", "12")) if version >= 3 else frozenset(("1", "5"))
    walk = _Walk(gpu_types, {int(node.get("os_index", "0")): node.get("cpuset", "")
                             for node in top.iter("object") if node.get("type") == "NUMANode"})
    for child in top.findall("object"):
        walk.visit(child, -1, False)
    if not walk.cores:
        raise ValueError("hwloc's XML has no core")
    return Raw(tuple(walk.cores), tuple(sorted(walk.devices)))


def bits(text: str) -> tuple[int, ...]:
    """The set bits of hwloc's bitmap text: comma-separated 32-bit words, highest first, zero words left empty."""
    value = 0
    for word in text.split(","):
        value = value << 32 | int(word or "0", 16)
    found = []
    while value:
        lowest = value & -value
        found.append(lowest.bit_length() - 1)
        value ^= lowest
    return tuple(found)


class _Walk:
    """Gathers cores and devices in document order, which is hwloc's logical order."""

    def __init__(self, gpu_types: frozenset[str], cpus_of: dict[int, str]) -> None:
        self._gpu_types, self._cpus_of = gpu_types, cpus_of
        self.cores: list[RawCore] = []
        self.devices: list[RawDevice] = []

    def visit(self, element: Element, numa: int, in_core: bool) -> None:
        kind = element.get("type", "")
        if kind not in _IO_OBJECTS:
            # nodes of memory only are near to many and say nothing of a place
            near = [node for node in bits(element.get("nodeset", "")) if bits(self._cpus_of.get(node, ""))]
            numa = near[0] if len({self._cpus_of[node] for node in near}) == 1 else -1
        if kind == "Core" or (kind == "PU" and not in_core):
            self.cores.append(RawCore(bits(element.get("cpuset", "")), min(bits(element.get("nodeset", "")),
                                                                           default=0)))
            in_core = True
        elif kind == "PCIDev":
            self._device(element, numa)
        for child in element.findall("object"):
            self.visit(child, numa, in_core)

    def _device(self, element: Element, numa: int) -> None:
        # "0302 [10de:20b0] [10de:134f] a1": class, vendor and device, ...
        device_class, _, rest = element.get("pci_type", "").partition(" [")
        if device_class[:2] in ("03", "12"):
            found = (d.get("name", "") for d in element.findall("object") if d.get("osdev_type") in self._gpu_types)
            # the kernel's names of whole devices: plugins would add theirs, connectors are named card0-DP-1
            kept = sorted(n for n in found if n.startswith(("card", "renderD", "controlD")) and "-" not in n)
            self.devices.append(RawDevice(element.get("pci_busid", "").lower(), int(rest[:4] or "0", 16), numa,
                                          tuple(kept)))


def _ask_child(source: str, root: str, timeout: float) -> tuple[bytes, int | None]:
    """(what the child wrote, its wait status); the status is None when it was too slow and had to be killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            _child(source, root, writing)
        finally:
            os._exit(1)
    os.close(writing)
    answer, late = bytearray(), False
    deadline = time.monotonic() + timeout
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([reading], [], [], left)[0]:
                late = True
                break
            piece = os.read(reading, 1 << 16)
            if not piece:
                break
            answer += piece
    finally:
        os.close(reading)
        if late:
            os.kill(pid, signal.SIGKILL)
        status = _wait(pid)
    return bytes(answer), None if late else status


def _wait(pid: int) -> int:
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        # the host program ignores SIGCHLD: the kernel reaped it
        return 0


def _child(source: str, root: str, writing: int) -> None:
    """Load, write a marshalled (kind, value) and leave. Does not return."""
    signal.set_wakeup_fd(-1)
    # what a batch system sends to all processes is not hwloc's failure; it is killed soon enough
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # hwloc writes warnings of firmware bugs to stderr: a thousand ranks would repeat them
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    answer: tuple[str, Any]
    try:
        _set_environment(root)
        raw = parse(_export_pyhwloc() if source == "pyhwloc" else _export_libhwloc())
        # plain tuples: marshal knows no others
        answer = ("ok", ([tuple(core) for core in raw.cores], [tuple(device) for device in raw.devices]))
    except SourceUnavailable as error:
        answer = ("missing", str(error))
    except Exception as error:
        answer = ("failed", f"{type(error).__name__}: {error}")
    data = marshal.dumps(answer)
    while data:
        data = data[os.write(writing, data):]
    os._exit(0)


def _set_environment(root: str) -> None:
    for name in ("HWLOC_XMLFILE", "HWLOC_SYNTHETIC", "HWLOC_FSROOT", "HWLOC_THISSYSTEM", "HWLOC_PLUGINS_PATH"):
        os.environ.pop(name, None)
    os.environ.setdefault("HWLOC_COMPONENTS", _UNWANTED_PLUGINS)
    if root != "/":
        os.environ["HWLOC_FSROOT"] = root
        os.environ["HWLOC_COMPONENTS"] = "linux,stop"


def _export_pyhwloc() -> str:
    try:
        from pyhwloc.topology import Topology, TopologyFlags, TypeFilter  # type: ignore[import-not-found]
    except (ImportError, OSError) as error:
        raise SourceUnavailable(f"pyhwloc cannot be imported ({error}): pip install mpiflux[hwloc]") from None
    topology = Topology.from_this_system()
    topology.set_io_types_filter(TypeFilter.KEEP_ALL)
    topology.set_flags(TopologyFlags.INCLUDE_DISALLOWED)
    return str(topology.load().export_xml_buffer())


def _export_libhwloc() -> str:
    import ctypes

    try:
        library = ctypes.CDLL(SONAME, use_errno=True)
    except OSError as error:
        raise SourceUnavailable(f"{error}: install hwloc 2 (Debian's package is libhwloc15)") from None

    def call(name: str, *arguments: object) -> None:
        if getattr(library, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")

    topology = ctypes.c_void_p()
    call("hwloc_topology_init", ctypes.byref(topology))
    call("hwloc_topology_set_io_types_filter", topology, _KEEP_ALL)
    call("hwloc_topology_set_flags", topology, ctypes.c_ulong(_INCLUDE_DISALLOWED))
    call("hwloc_topology_load", topology)
    text, length = ctypes.c_char_p(), ctypes.c_int()
    call("hwloc_topology_export_xmlbuffer", topology, ctypes.byref(text), ctypes.byref(length), ctypes.c_ulong(0))
    return (text.value or b"").decode("utf-8", "replace")
