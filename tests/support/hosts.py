"""Several hosts on this machine: network namespaces on a bridge, each with a name, an address and its own loopback.

Programs on them reach each other by TCP alone as far as the MPI library is told so (:meth:`Hosts.environment`); the
file system, process numbers and CPUs are those of the machine. ``enter`` is what ssh would be: a host, then words that
a shell there reads, with a fresh environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.leaks import MARK as LEAK_MARK
from tests.support.mpi import MARK, MpiRun, clean_environment, installed_stack
from tests.support.runs import LIMIT, ROOT, Done, Place, Run, Workflow

NETNS = Path("/etc/netns")
"""Where ``ip netns exec`` finds files of /etc that are a namespace's own (ip-netns(8))."""

ENTER = """#!/bin/sh
# a host, then a command for its shell, as ssh has it; nothing of the environment goes along but the marks of a test
host=$1; shift
keep="TMPDIR=$TMPDIR LEAK_MARK=$LEAK_MARK MPI_RUN_MARK=$MPI_RUN_MARK"
exec env -i PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/ $keep ip netns exec {prefix}$host \
    unshare --uts sh -c 'hostname "$0"; cd /; exec sh -c "$1"' $host "$*"
"""

ON = """#!/bin/sh
# a host, then words: a command on that host as one would type it there, with this environment
host=$1; shift
exec ip netns exec {prefix}$host unshare --uts sh -c 'hostname "$0"; exec "$@"' $host "$@"
"""


def unavailable() -> str:
    """Why there can be no hosts here, or nothing when there can."""
    if os.getuid() != 0:
        return "needs root"
    missing = [command for command in ("ip", "unshare", "hostname") if not shutil.which(command)]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install iproute2 util-linux hostname"
    name = f"mf{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode == 0:
        tried = subprocess.run(["ip", "netns", "exec", name, "unshare", "--uts", "hostname", name],
                               capture_output=True, check=False)
        bridge = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        if tried.returncode == bridge.returncode == 0:
            return ""
    return "this container may not make network namespaces, bridges and host names (CAP_NET_ADMIN, CAP_SYS_ADMIN)"


class Hosts:
    """Running hosts ``h0``, ``h1``, …; :meth:`close` takes them away again."""

    def __init__(self, count: int = 4) -> None:
        self.names = [f"h{number}" for number in range(count)]
        self._prefix = f"mf{uuid.uuid4().hex[:6]}"  # an interface's name has 15 characters at most
        self._directory = Path(tempfile.mkdtemp(prefix="mf-hosts-"))
        self.enter = str(self._script("enter", ENTER))
        self._on = str(self._script("on", ON))
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _script(self, name: str, text: str) -> Path:
        path = self._directory / name
        path.write_text(text.format(prefix=self._prefix))
        path.chmod(0o755)
        return path

    def _make(self) -> None:
        table = "127.0.0.1 localhost\n" + "".join(f"10.77.0.{n + 1} {name}\n" for n, name in enumerate(self.names))
        bridge = f"{self._prefix}br"
        # the bridge too has a namespace, so that nothing of ours meets the machine's own network
        _ip("netns", "add", bridge)
        _ip("-n", bridge, "link", "add", "name", "bridge0", "type", "bridge")
        _ip("-n", bridge, "link", "set", "bridge0", "up")
        for number, name in enumerate(self.names):
            space = self._prefix + name
            _ip("netns", "add", space)
            (NETNS / space).mkdir(parents=True)
            (NETNS / space / "hosts").write_text(table)
            _ip("-n", bridge, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("-n", bridge, "link", "set", name, "master", "bridge0", "up")
            _ip("-n", space, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def cut(self, name: str) -> None:
        """Pull the host's network cable."""
        _ip("-n", f"{self._prefix}br", "link", "set", name, "down")

    def mend(self, name: str) -> None:
        _ip("-n", f"{self._prefix}br", "link", "set", name, "up")

    def environment(self, extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """What makes MPICH take each host for a machine of its own: UCX finds the memory that they do share."""
        return clean_environment({"UCX_TLS": "tcp,self", "MPIR_CVAR_NOLOCAL": "1", "PYTHONPATH": str(ROOT),
                                  **(extra or {})})

    def start(self, place: Place, words: Sequence[str], host: str = "h0",
              env: Mapping[str, str | None] | None = None) -> MpiRun:
        """A command on one host, running."""
        return MpiRun([self._on, host, *words], self.environment(env), place.path)

    def call(self, place: Place, words: Sequence[str], status: int | None = 0, timeout: float = LIMIT,
             env: Mapping[str, str | None] | None = None) -> Done:
        """A command on the first host to its end, which must be ``status`` unless that is None."""
        with self.start(place, words, env=env) as running:
            done = running.wait(timeout)
        told = (f"{shlex.join(words)}: {done.returncode}\n-- stdout\n{done.stdout[-3000:]}\n"
                f"-- stderr\n{done.stderr[-3000:]}")
        assert status is None or done.returncode == status, told
        return done

    def run(self, place: Place, workflow: Workflow, *options: str, hosts: Sequence[str] = (), status: int = 0,
            launch: Sequence[str] = ()) -> Run:
        """``run`` with one rank on each host, to its end: by mpiexec, or by ``launch`` options of mpiflux itself."""
        name = place.new()
        given = isinstance(workflow, str) and "\n" not in workflow
        file = str(workflow) if given else place.write(f"{name}.yaml", workflow).name
        words = ["-m", "mpiflux", "run", file, "--run-dir", name, *options, *launch]
        mpiexec = [] if launch else self.mpiexec(hosts or self.names)
        return Run(place.path / name, self.call(place, [*mpiexec, installed_stack().python, *words], status=status))

    def steer(self, place: Place, program: Sequence[str], *options: str) -> Run:
        """``start`` with one rank on each host and a Python program that steers, to its end."""
        name = place.new()
        python = installed_stack().python
        words = [python, "-m", "mpiflux", "start", "--run-dir", name, *options, "--", python, *program]
        return Run(place.path / name, self.call(place, [*self.mpiexec(self.names), *words]))

    def mpiexec(self, hosts: Sequence[str]) -> list[str]:
        """MPICH's own launcher with one rank on each host."""
        return [installed_stack().mpiexec, "-launcher", "rsh", "-launcher-exec", self.enter, "-iface", "eth0",
                "-hosts", ",".join(hosts), "-n", str(len(hosts)), "-ppn", "1"]

    def carried(self, name: str) -> int:
        """Bytes that have come to the host by the network so far."""
        shown = subprocess.run(["ip", "-j", "-s", "-n", f"{self._prefix}br", "link", "show", name],
                               capture_output=True, text=True, check=True).stdout
        return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])

    def close(self) -> None:
        """Take everything away. What still runs on a host is killed; :meth:`processes` tells of it before."""
        for pid in self.processes():
            os.kill(pid, 9)
        end = time.monotonic() + 5
        while self.processes() and time.monotonic() < end:
            time.sleep(0.02)
        for space in self._spaces():
            _ip("netns", "del", space)
            shutil.rmtree(NETNS / space, ignore_errors=True)
        with contextlib.suppress(OSError):  # it was there before, or others have something in it
            NETNS.rmdir()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _spaces(self) -> list[str]:
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        return [line.split()[0] for line in listed.splitlines() if line.startswith(self._prefix)]

    def processes(self) -> list[int]:
        """What runs on the hosts now."""
        return [pid for space in self._spaces() for pid in _in(space)]

    def on(self, name: str) -> list[int]:
        """What runs on one host now."""
        return _in(self._prefix + name)

    def left(self) -> list[str]:
        """After :meth:`close`: whatever of ours is still there."""
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        return [*self._spaces(), *(line for line in links.splitlines() if self._prefix in line),
                *map(str, NETNS.glob(f"{self._prefix}*")), *map(str, self._directory.parent.glob(self._directory.name))]


def lent(count: int, stack: str, otherwise: str) -> Iterator[Hosts]:
    """Hosts for the tests of a module, with one MPI; ``otherwise`` is why not with another. Fails when something still
    runs on them at the end, or is left of them."""
    if installed_stack().name != stack:
        pytest.skip(otherwise)
    if reason := unavailable():
        pytest.skip(f"several hosts: {reason}")
    made = Hosts(count)
    yield made
    running = made.processes()
    made.close()
    assert not running, f"still running on the hosts: {running}"
    assert not made.left()


def _in(space: str) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid in found.split()]


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {shlex.join(words)}: {done.stderr.strip()}")


assert (MARK, LEAK_MARK) == ("MPI_RUN_MARK", "LEAK_MARK")  # as they stand in ENTER
