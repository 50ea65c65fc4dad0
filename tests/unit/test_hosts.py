"""Where ``--hosts`` puts ranks, and what the two ends of a remote rank say to each other."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.cli.ranks import OURS, without
from mpiflux.instance.hosts import Layout, layout
from mpiflux.model import rankframes as frames
from mpiflux.node import near

FRAMES = st.lists(st.tuples(st.sampled_from([frames.STDOUT, frames.PMI, frames.ENDED]), st.binary(max_size=300)))


@given(FRAMES, st.binary(max_size=60), st.lists(st.integers(1, 40), min_size=1))
def test_frames_arrive_as_sent_in_any_pieces_and_whatever_a_login_script_says(
        sent: list[tuple[bytes, bytes]], banner: bytes, cuts: list[int]) -> None:
    if b"\0" in banner:
        banner = banner.replace(b"\0", b"")
    stream = banner + frames.GREETING + b"".join(frames.pack(*frame) for frame in sent)
    unpacker, got, at = frames.Greeted(), [], 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        got += unpacker.feed(stream[at:at + size])
        at += size
    assert (got, unpacker.before, unpacker.greeted) == (sent, banner, True)


def test_who_prints_without_end_is_no_rank() -> None:
    unpacker = frames.Greeted()
    with pytest.raises(frames.NotAFrameError):
        for _ in range(frames.BEFORE_MAX // 1000 + 2):
            assert unpacker.feed(b"y\n" * 500) == []
    assert not unpacker.greeted and unpacker.before.startswith(b"y\ny\n")


HANGS = """#!/bin/sh
case $1 in mute) exec sleep 1000;; loud) exec yes;; esac
"""


@pytest.mark.parametrize(("host", "words"), [
    ("mute", ["still waiting for host mute", "has not answered for 0.4 s; does it wait for a password"]),
    ("loud", ["cannot start a rank on host loud", "not from mpiflux: it begins with b'y\\ny\\n"]),
])
def test_a_remote_shell_that_never_answers_is_told_of(host: str, words: list[str], tmp_path: Path) -> None:
    rsh = tmp_path / "rsh"
    rsh.write_text(HANGS)
    rsh.chmod(0o755)
    task = json.dumps({"host": host, "rsh": [str(rsh)], "segments": []})
    program = "import sys; from mpiflux.node import near; near.SLOW, near.SILENT = 0.2, 0.4; sys.exit(near.main())"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run([sys.executable, "-c", program, task, "true"], pass_fds=[theirs.fileno()], timeout=60,
                              env={**os.environ, "PMI_FD": str(theirs.fileno())}, capture_output=True, text=True)
    assert done.returncode == near.CANNOT_START
    assert [word for word in words if word not in done.stderr] == []
    assert done.stderr.count("still waiting") == (host == "mute")


def test_what_is_no_frame_is_told() -> None:
    with pytest.raises(frames.NotAFrameError):
        frames.Unpacker().feed(b"o\xff\xff\xff\xffxx")


@pytest.mark.parametrize(("text", "ranks", "hosts"), [
    ("a,b,c", None, "a b c"), ("a:2,b", None, "a a b"), ("n[1-2]:2", None, "n1 n1 n2 n2"), ("a,b,a", None, "a a b"),
    ("a,b", 5, "a a a b b"), ("a", 1, "a"),
])
def test_hosts_of_ranks(text: str, ranks: int | None, hosts: str) -> None:
    assert layout(text, ranks, None).hosts == tuple(hosts.split())


@pytest.mark.parametrize(("text", "ranks", "rsh", "told"), [
    ("a,,b", None, None, "empty name"), ("a:0", None, None, "'a:0'"), ("a:x", None, None, "'a:x'"),
    ("", None, None, "no host"),
    ("-oProxyCommand=x", None, None, "no host name"), ("a:2,b", 4, None, "not both"), ("a,b,c", 2, None, "fewer"),
    ("a", None, "", "no command"), ("a", None, "ssh 'x", "--rsh"), ("n[1-", None, None, "bracket"),
])
def test_wrong_hosts_are_told(text: str, ranks: int | None, rsh: str | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        layout(text, ranks, rsh)


def test_a_rank_knows_its_place_on_its_host() -> None:
    there = Layout(("a", "b", "a", "b", "b"), ("ssh",))
    assert there.nodes() == [0, 1, 0, 1, 1]
    places = [tuple(there.variables(rank).values()) for rank in range(5)]
    assert places == [("0", "2"), ("0", "3"), ("1", "2"), ("1", "3"), ("2", "3")]


def test_only_other_hosts_are_reached_by_the_remote_shell() -> None:
    there = Layout(("here", "b"), ("ssh", "-v"), frozenset({"here"}))
    assert there.command(0, ["prog", "x"], "kvs") == ["prog", "x"]
    words = there.command(1, ["prog", "x"], "kvs")
    assert words[:3] == [sys.executable, "-m", "mpiflux.node.near"] and words[4:] == ["prog", "x"]
    task = json.loads(words[3])
    assert (task["host"], task["rsh"]) == ("b", ["ssh", "-v"])
    assert len({name.rpartition("_")[2] for name in task["segments"]}) == 2  # of both nodes


def test_the_remote_command_survives_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/a b/$c")
    words = near.remote_command(["rsh", "-x"], "b")
    assert words[:3] == ["rsh", "-x", "b"]
    assert shlex.split(" ".join(words[3:])) == ["env", "PYTHONPATH=/a b/$c", sys.executable, "-m", "mpiflux.node.far"]


def test_what_belongs_to_this_host_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PMI_FD", "SLURMD_NODENAME", "SSH_CONNECTION", "HOSTNAME", "PMI_RANK", "MINE"):
        monkeypatch.setenv(name, "x")
    assert {"PMI_RANK", "MINE"} <= set(near.environment())
    assert not {"PMI_FD", "SLURMD_NODENAME", "SSH_CONNECTION", "HOSTNAME"} & set(near.environment())


def test_ranks_are_not_started_by_ranks() -> None:
    words = ["--ranks", "4", "w.yaml", "--hosts=a,b", "--rsh", "ssh -v", "--resume", "--hosts", "c", "--rsh=x"]
    assert without(words, OURS) == ["w.yaml", "--resume"]
