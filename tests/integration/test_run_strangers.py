"""Another user of the same machine, who tries to get in. Only root can be two users."""

from __future__ import annotations

import errno
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpiflux.model import requests
from mpiflux.model.frames import pack
from tests.support.mpi import installed_stack
from tests.support.runs import Place, until

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")]
STRANGER = 65534


NO = (errno.EPERM, errno.EACCES, errno.ENOENT, errno.EISDIR, errno.ENOTDIR)


def as_stranger(what: Callable[..., str], *words: str) -> str:
    """What a function returns when another user calls it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            os.write(write, what(*words).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with open(read, "rb") as file:
        told = file.read().decode()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return told


def connect(path: str, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(path)


def attempts(*paths: str) -> str:
    """What can be done with files and sockets; what fails for another reason than rights counts as done."""
    done = []
    for path in paths:
        for name, act in (("list", lambda p: os.listdir(p)), ("read", lambda p: open(p, "rb").close()),
                          ("write", lambda p: open(p, "ab").close()),
                          ("connect", lambda p: connect(p, socket.SOCK_STREAM)),
                          ("ring", lambda p: connect(p, socket.SOCK_DGRAM))):
            try:
                act(path)
            except OSError as error:
                if error.errno in NO:
                    continue
            done.append(f"{name} {path}")
    return "\n".join(done)


def knock(path: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(30)
        sock.connect(path)
        try:
            sock.sendall(pack(requests.encode(requests.Hello(requests.VERSION))))
            return repr(sock.recv(4096))
        except ConnectionError:
            return "b''"


@pytest.fixture
def public() -> Iterator[Place]:
    """A current directory that everybody may enter, with a name that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="mf", dir="/tmp") as base:
        os.chmod(base, 0o755)
        made = Place(Path(base))
        yield made
        assert not made.strays()


def test_a_stranger_can_read_connect_and_ring_nothing(public: Place) -> None:
    place, doors = public, public.path / "doors"
    doors.mkdir()
    place.expected.add("doors")
    os.chmod(doors, 0o777)
    flow = {"jobs": {"a": {"command": "sleep 60", "parameters": {"i": {"range": 2}}}}}
    before = set(Path("/dev/shm").iterdir())
    running, run = place.begin(flow, "--cores-per-node", "2", env={"TMPDIR": str(doors)}, ranks=2)
    with running:
        until(lambda: list(doors.glob("*/door")) and (run.directory / "run.db").exists(), "a door opens")
        until(lambda: run.results().get("RUN") == 2, "two jobs run")
        inside = [str(path) for base in (run.directory, *doors.iterdir()) for path in (base, *base.iterdir())]
        assert len(inside) > 6 and as_stranger(attempts, *inside) == ""
        own = [f"/proc/{running.process.pid}/environ", *(
            str(path) for path in set(Path("/dev/shm").iterdir()) - before)]
        assert as_stranger(attempts, *own) == ""
        # with every mode opened by mistake, the kernel still says who it is
        door = next(iter(doors.glob("*/door")))
        os.chmod(door.parent, 0o777)
        os.chmod(door, 0o777)
        assert as_stranger(knock, str(door)) == "b''"
        assert knock(str(door)) != "b''"
        place.call("cancel", "--all", "--run-dir", run.directory.name)
        assert running.wait().returncode == 1


NOISE = """
import glob, os, random, socket
directory = os.path.dirname(os.environ["MPIFLUX_URI"].removeprefix("local://"))
bells = glob.glob(directory + "/**/bell-*", recursive=True)
for bell in bells * 200:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.sendto(random.choice((b"nonsense", b"", b"77", b"-3", os.urandom(30))), bell)
        except BlockingIOError:
            pass
print(len(bells))
"""


@pytest.mark.skipif(installed_stack().name != "mpich", reason="--ranks starts MPICH's ranks only")
def test_noise_at_the_bells_of_ranks_changes_nothing(place: Place) -> None:
    script = place.write("noise.py", NOISE)
    flow = {"jobs": {"noise": {"command": [sys.executable, script.name], "parameters": {"i": {"range": 4}}},
                     "after": {"command": "true", "after": ["noise"], "parameters": {"i": {"range": 20}}}}}
    run = place.run(flow, "--ranks", "3")
    assert run.results() == {"COMPLETED": 24} and {run.stdout("noise", i) for i in range(4)} == {b"3\n"}
