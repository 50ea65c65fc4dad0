"""Supervisors over thousands of jobs and with little: nothing grows, and what is short is waited for or told."""

from __future__ import annotations

import os
import pwd
import resource
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpiflux.model.states import Result
from mpiflux.node import shortage
from mpiflux.node.topology import gpus, types
from tests.support import procs
from tests.support.node import Ended, Node

__all__ = ["gpus", "types"]  # imported now, because a process that is somebody else may not be able to later


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    """KiB of memory that are this process's own."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private"))


def test_thousands_of_jobs_leave_nothing(tmp_path: Path) -> None:
    with Node(supervisors=2) as node:
        group = node.declare("/bin/echo", "{job.index}", count=3000)
        node.tell(group, 1)

        def some(start: int, stop: int) -> None:
            middle = (start + stop) // 2
            for number, (first, last) in enumerate(((start, middle), (middle, stop))):
                node.grant(number, to=number, shape=number)
                for at in range(first, last, 50):
                    node.feed(group, at, min(at + 50, last), to=number, shape=number)
            node.wait(stop, 120)

        some(0, 500)
        before = [(descriptors(pid), resident(pid)) for pid in node.pids()]
        some(500, 3000)
        for pid, (fds, memory) in zip(node.pids(), before, strict=True):
            assert descriptors(pid) <= fds
            assert resident(pid) - memory < 512, "memory grows with the number of jobs"
        table = procs.everyone()
        assert not [p for number in node.pids() for p in procs.descendants(number, table)]
        assert [done.stdout for done in node.wait(3000)] == [b"%d\n" % i for i in range(3000)]


def test_a_supervisor_is_small() -> None:
    with Node() as node:
        node.run("/bin/true")
        # what it shares with the process that it was forked from is there anyway
        assert resident(node.pids()[0]) < 20 << 10
        assert resident(node.zygote.pid) < 20 << 10


def test_leaving_daemons_leaves_no_zombies() -> None:
    with Node() as node:
        group = node.declare("sh -c 'setsid sleep 600 > /dev/null 2>&1 &'; (exit 3) & true", shell=True, count=50)
        node.grant(0)
        node.feed(group)
        node.wait(50)
        node.until(lambda: not procs.descendants(node.pids()[0], procs.everyone()))


# -- little of everything --------------------------------------------------------------------------------------------


@contextmanager
def limit(kind: int, soft: int) -> Iterator[None]:
    """For what is forked meanwhile."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def many(node: Node, width: int, count: int, command: str = "sleep 0.1; echo {job.index}") -> list[Ended]:
    group = node.declare(command, shell=True, count=count)
    for _ in range(width):
        node.grant(0)
    node.feed(group)
    return node.wait(count, 60)


def test_few_descriptors_are_made_do_with() -> None:
    with limit(resource.RLIMIT_NOFILE, 48), Node() as node:
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 48
        done = many(node, 30, 60)
        assert [one.stdout for one in done] == [b"%d\n" % i for i in range(60)]
        assert {one.result for one in done} == {Result.COMPLETED}


def test_too_few_descriptors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortage, "PATIENCE", 0.3)
    with Node() as node:
        pid = node.pids()[0]
        node.run("/bin/true")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) - 4, 1024))
        done = node.run("/bin/cat", input="/dev/null", output="/dev/null")
        assert (done.result, done.returncode) == (Result.FAILED, 126)
        assert "ulimit -n" in done.reason
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, 1024))
        assert node.run("/bin/true").result is Result.COMPLETED


def as_nobody(processes: int, work: Callable[[], object]) -> object:
    """Do ``work`` in a fork that may have only so many processes; root has no such limit."""
    nobody = pwd.getpwnam("nobody")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setresgid(nobody.pw_gid, nobody.pw_gid, nobody.pw_gid)
                os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)
            mine = sum(1 for name in os.listdir("/proc") if name.isdigit() and _uid(name) == os.getuid())
            resource.setrlimit(resource.RLIMIT_NPROC, (mine + processes, mine + processes))
            os.write(write, repr(work()).encode())
            os._exit(0)
        except BaseException:
            os.write(write, traceback.format_exc().encode())
            os._exit(1)
    os.close(write)
    with open(read, "rb") as file:
        told = file.read().decode()
    if os.waitpid(pid, 0)[1]:
        pytest.fail(told)
    return eval(told)


def _uid(pid: str) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def test_few_processes_are_made_do_with() -> None:
    def work() -> object:
        with Node() as node:
            done = many(node, 8, 24, "echo {job.index}; exec sleep 0.05")
            return [one.stdout for one in done], {one.result.name for one in done}

    # the zygote, the supervisor, and three jobs
    assert as_nobody(5, work) == ([b"%d\n" % i for i in range(24)], {"COMPLETED"})


def test_too_few_processes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortage, "PATIENCE", 0.3)

    def work() -> object:
        with Node() as node:
            done = node.run("/bin/true")
            return done.result.name, done.returncode, done.reason

    result, code, reason = as_nobody(2, work)  # type: ignore[misc]
    assert (result, code) == ("FAILED", 126)
    assert "ulimit -u" in reason


def test_no_process_even_for_a_supervisor() -> None:
    def work() -> object:
        try:
            Node()
        except RuntimeError as error:
            return str(error)
        return "started"

    assert "ulimit -u" in str(as_nobody(1, work))
