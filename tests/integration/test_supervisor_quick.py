"""A supervisor with its C part and without: the same jobs, the same results.

All other tests of supervisors run with whichever the installation has; these build the C part, where there is a
compiler, and do without it in turn.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from mpiflux.model import messages as m
from mpiflux.model import records as r
from mpiflux.model.params import ListColumn, ParamTable
from mpiflux.model.states import Result
from mpiflux.node import quick
from tests.support.node import Ended, Node

SOURCE = Path(quick.__file__).with_suffix(".c")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a C part that was built just now."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("quick")
    target = directory / f"_quick{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", target, SOURCE],
                   check=True)
    return str(directory)


@pytest.fixture(params=["c", "python"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "python":
        monkeypatch.setenv("MPIFLUX_NATIVE", "0")
        return False
    monkeypatch.setattr(quick, "DIRECTORY", request.getfixturevalue("library"))
    return True


@pytest.fixture
def node(native: bool) -> Iterator[Node]:
    with Node() as made:
        yield made


def shells(node: Node, texts: list[str], leases: int = 1, **keys: Any) -> list[Ended]:
    """One job of each text, in one group; how they ended, in that order."""
    group = node.declare("{text}", shell=True, count=len(texts),
                         params=ParamTable(("text",), (ListColumn(tuple(texts)),)), **keys)
    for core in range(leases):
        node.grant(core % len(node.cpus))
    node.feed(group)
    return node.wait(len(texts))


def test_each_job_has_its_own_output_and_exit_code(node: Node) -> None:
    done = shells(node, [f"echo out {n}; echo err {n} >&2; exit {n % 7}" for n in range(150)], leases=3)
    for n, job in enumerate(done):
        assert (job.stdout, job.stderr) == (b"out %d\n" % n, b"err %d\n" % n)
        assert job.returncode == n % 7
        assert job.result is (Result.FAILED if n % 7 else Result.COMPLETED)
        assert job.t_finish > job.t_start and job.pid > 0 and job.maxrss > 0 and job.tasks == 1
    assert len({job.pid for job in done}) == 150


def test_arguments_and_environment_of_each_job(node: Node) -> None:
    group = node.declare("/bin/sh", "-c", "echo {job.index} $MINE $FIXED $MPIFLUX_JOB_ID $MPIFLUX_JOB_INDEX "
                         "$MPIFLUX_ATTEMPT $MPIFLUX_TASK_RANK $0 \"$1\"", "{job.id}", "a b",
                         env={"MINE": "v{job.index}", "FIXED": "f"}, count=100)
    node.grant(0)
    node.feed(group, attempt=3)
    for n, job in enumerate(node.wait(100)):
        expected = f"{n} v{n} f {job.id} {n} 3 0 {job.id} a b\n"
        assert job.stdout.decode() == expected
        assert job.attempt == 3


def test_constant_jobs_are_bound_and_in_their_own_process_group(node: Node) -> None:
    group = node.declare("/bin/sh", "-c", "grep Cpus_allowed_list /proc/self/status; ps -o pgid= $$; pwd;"
                         "echo $$; grep -E 'SigBlk|SigIgn' /proc/self/status", cwd="/usr", count=40)
    node.grant(0)
    node.feed(group)
    for job in node.wait(40):
        cpus, pgid, cwd, pid, blocked, ignored = job.stdout.split(b"\n")[:6]
        assert cpus.split()[1] == b"%d" % node.cpus[0][0]
        assert int(pgid) == int(pid) == job.pid
        assert cwd == b"/usr"
        assert int(blocked.split()[1], 16) == 0
        # the C library's posix_spawn has the two signals ignored that are its own
        assert int(ignored.split()[1], 16) & ~(3 << 31) == 0


def test_output_over_the_limit_is_cut_and_marked(node: Node) -> None:
    done = shells(node, ["echo 123456789; echo ab >&2", "echo 1234", "echo 1234567890 >&2"] * 10, output_limit=5)
    assert [(job.stdout, job.stderr, job.flags) for job in done] == [
        (b"12345", b"ab\n", r.FLAG_STDOUT_TRUNCATED), (b"1234\n", b"", 0),
        (b"", b"12345", r.FLAG_STDERR_TRUNCATED)] * 10


def test_jobs_that_are_not_plain_among_plain_ones(node: Node) -> None:
    """Slow, loud, dead by a signal, leaving somebody behind, with a pipe that does not block."""
    kinds = ["echo plain", "sleep 0.05; echo slow", "head -c 200000 /dev/zero", "kill -9 $$", "exit 139",
             "setsid sleep 60 & echo left",
             f"{sys.executable} -c 'import os; os.set_blocking(1, False); os.set_blocking(2, False)'"]
    done = shells(node, kinds * 2, leases=2)
    for n, job in enumerate(done):
        kind = n % len(kinds)
        expected = {0: b"plain\n", 1: b"slow\n", 2: bytes(200_000), 5: b"left\n"}.get(kind, b"")
        assert job.stdout == expected, kinds[kind]
        assert job.returncode == {3: -9, 4: 139}.get(kind, 0)


def test_jobs_that_cannot_be_started_among_others(node: Node, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo from a script without its first line\n")
    script.chmod(0o755)
    words = ["/bin/true", "/nowhere/program", "no-such-program", str(tmp_path), str(script), "/bin/echo"]
    group = node.declare("{word}", count=len(words) * 5, params=ParamTable(("word",), (ListColumn(tuple(words * 5)),)))
    node.grant(0)
    node.feed(group)
    done = node.wait(len(words) * 5)
    for n, job in enumerate(done):
        expected = (0, 127, 127, 126, 0, 0)[n % len(words)]
        assert job.returncode == expected, words[n % len(words)]
        assert bool(job.reason) is bool(expected)
    assert done[4].stdout == b"from a script without its first line\n"


def test_a_long_job_beside_short_ones_can_be_cancelled(node: Node) -> None:
    group = node.declare("test {job.index} = 5 && exec sleep 60; exit 0", shell=True, count=200)
    node.grant(0)
    node.grant(0)
    node.feed(group)
    node.until(lambda: (group.first_id + 5, 1) in node.started)
    node.post(m.Cancel((group.first_id + 5,), "enough"))
    done = node.wait(200)
    assert [job.id - group.first_id for job in done if job.result is not Result.COMPLETED] == [5]
    assert (done[5].result, done[5].reason, done[5].returncode) == (Result.CANCELED, "enough", -signal.SIGTERM)


def test_a_time_limit_ends_one_of_many(node: Node) -> None:
    done = shells(node, ["true", "sleep 60", "true"], time_limit=0.3)
    assert [job.result for job in done] == [Result.COMPLETED, Result.TIMEOUT, Result.COMPLETED]


def test_several_groups_and_shapes_in_turn(node: Node) -> None:
    groups = [node.declare("echo", f"{n}-{{job.index}}", count=30) for n in range(4)]
    node.grant(0)
    node.grant(0, shape=1)
    for n, group in enumerate(groups):
        node.feed(group, 0, 15, shape=n % 2)
    for n, group in enumerate(groups):
        node.feed(group, 15, 30, shape=n % 2)
    done = node.wait(120)
    assert [job.stdout for job in done] == [b"%d-%d\n" % (n, i) for n in range(4) for i in range(30)]


def test_no_shape_waits_for_the_jobs_of_another(node: Node) -> None:
    """Each has a lease that is idle whenever one of its jobs has ended, and is fed as long as there are jobs."""
    groups = [node.declare("sleep", "0.002", count=300) for _ in range(2)]
    fed = [0, 0]

    def feed() -> bool:
        for shape, group in enumerate(groups):
            ended = sum(job.id in range(group.first_id, group.first_id + 300) for job in node.ended)
            if fed[shape] < 300 and fed[shape] - ended < 30:
                node.feed(group, fed[shape], fed[shape] + 60, shape=shape)
                fed[shape] += 60
        return len(node.ended) == 600

    for shape in range(2):
        node.grant(shape, shape=shape)
    node.until(feed)
    kinds = [job.id >= groups[1].first_id for job in sorted(node.ended, key=lambda job: job.t_start)]
    most = max(len(list(row)) for _, row in groupby(kinds[:500]))
    assert most < 60, "one shape had many jobs in a row while the other had a lease and jobs too"


def test_the_c_part_is_what_runs_short_jobs(native: bool, node: Node) -> None:
    """Otherwise this file would test one thing twice."""
    node.run("/bin/true")
    with open(f"/proc/{node.pids()[0]}/maps", encoding="ascii") as file:
        assert any("/_quick" in line for line in file) is native


@pytest.mark.parametrize("more", [0, 1])
def test_a_library_of_another_version_is_not_used(library: str, more: int) -> None:
    # not in this process, from which supervisors are forked
    text = (f"from mpiflux.node import quick; quick.DIRECTORY = {library!r}; quick.VERSION += {more};"
            "print(quick.load() is not None)")
    done = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    assert done.stdout == f"{not more}\n"
