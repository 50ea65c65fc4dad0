"""The PMI connection during MPI_Init under Slurm, against a server of our own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from mpiflux.instance.pmi_lengths import LONGEST, short_values, shorter


def test_only_a_length_above_ours_is_cut() -> None:
    assert shorter(b"cmd=maxes rc=0 keylen_max=64 vallen_max=1024\n") == (
        b"cmd=maxes rc=0 keylen_max=64 vallen_max=%d\n" % LONGEST)
    for line in (b"cmd=maxes rc=0 vallen_max=64\n", b"cmd=get_result rc=0 value=max=1024\n"):
        assert shorter(line) == line


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, int]]:
    """A server and the number of the descriptor that a client finds in PMI_FD."""
    server, client = socket.socketpair()
    server.settimeout(30)
    with server, client:
        yield server, client.fileno()


def test_the_client_hears_of_shorter_values_and_of_all_else_as_it_is(pair: tuple[socket.socket, int]) -> None:
    server, fd = pair
    with short_values({"PMI_FD": str(fd), "SLURM_STEP_ID": "0"}):
        os.write(fd, b"cmd=get_maxes\n")
        assert server.recv(100) == b"cmd=get_maxes\n"
        server.sendall(b"cmd=maxes vallen_")
        server.sendall(b"max=1024\n")
        assert os.read(fd, 100) == b"cmd=maxes vallen_max=%d\n" % LONGEST
        os.write(fd, b"x" * 5_000 + b"\n")
        got = 0
        while got < 5_001:
            got += len(server.recv(65536))
    os.write(fd, b"cmd=finalize\n")
    assert server.recv(100) == b"cmd=finalize\n", "it leads to the server itself again"
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_server_s_end_is_the_client_s(pair: tuple[socket.socket, int]) -> None:
    server, fd = pair
    with short_values({"PMI_FD": str(fd), "SLURM_STEP_ID": "0"}):
        server.shutdown(socket.SHUT_RDWR)  # the process between has a copy of this end too
        assert os.read(fd, 100) == b""


@pytest.mark.parametrize("environ", [{}, {"SLURM_STEP_ID": "0"}, {"SLURM_STEP_ID": "0", "PMI_FD": "x"}])
def test_elsewhere_nothing_is_put_between(environ: dict[str, str]) -> None:
    with short_values(environ):
        pass


def test_another_launcher_s_connection_is_left_alone(pair: tuple[socket.socket, int]) -> None:
    server, fd = pair
    with short_values({"PMI_FD": str(fd)}):
        server.sendall(b"vallen_max=1024\n")
        assert os.read(fd, 100) == b"vallen_max=1024\n"
