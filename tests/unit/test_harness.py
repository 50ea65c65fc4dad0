"""The harness itself: leaks are found and named, and a hung MPI program is really ended."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import procs
from tests.support.leaks import MARK, LeakCheck
from tests.support.mpi import MpiTimeoutError, clean_environment, run_mpi, start_mpi


@pytest.fixture
def check() -> Iterator[LeakCheck]:
    made = LeakCheck(os.urandom(8).hex(), Path(tempfile.mkdtemp(prefix="mf-")))
    yield made
    made.clean()


def spawn(check: LeakCheck, code: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, **check.environ},
                            stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def test_nothing_is_found_where_nothing_is_left(check: LeakCheck) -> None:
    with spawn(check, "import tempfile; tempfile.TemporaryFile().write(b'x')") as child:
        child.wait()
    assert check.settle() == []


def test_what_ends_by_itself_in_the_grace_is_no_leak(check: LeakCheck) -> None:
    with spawn(check, "input()", stdin=subprocess.PIPE) as child:
        assert len(check.leaks()) == 3  # the process and our two pipe ends
        child.communicate("\n")
    assert check.settle() == []


def test_a_left_over_child_is_found_and_killed(check: LeakCheck) -> None:
    child = subprocess.Popen(["sleep", "1000"])  # by descent alone: it does not carry the mark
    found = check.settle(grace=0)
    assert len(found) == 1 and f"process {child.pid} (sleep 1000)" in found[0]
    check.clean()
    assert procs.stat(child.pid) is None
    child.returncode = -9  # reaped behind its back


def test_a_daemon_in_its_own_session_is_found_and_killed(check: LeakCheck) -> None:
    with spawn(check, """
            import os, time
            if os.fork() == 0:
                os.setsid()
                if (pid := os.fork()) == 0:
                    os.close(1)
                    time.sleep(1000)
                print(pid, flush=True)
                os._exit(0)
            os.wait()
            """) as child:
        pid = int(child.stdout.readline())
    assert child.returncode == 0
    assert procs.stat(pid).parent != os.getpid()
    found = check.settle(grace=0)
    assert len(found) == 1 and f"process {pid} (" in found[0]
    check.clean()
    left = procs.stat(pid)
    assert left is None or left.zombie


def test_a_zombie_is_found(check: LeakCheck) -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert [text.split(" [")[0] for text in check.settle(grace=0)] == [f"zombie {pid}"]
    check.clean()
    assert check.settle() == []


def test_a_left_descriptor_is_found(check: LeakCheck) -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        assert check.settle(grace=0) == [f"descriptor {fd} on {os.devnull}"]
    finally:
        os.close(fd)
    assert check.settle() == []


def test_a_left_file_and_a_bound_socket_are_found(check: LeakCheck) -> None:
    with spawn(check, """
            import os, socket, tempfile
            s = socket.socket(socket.AF_UNIX); s.bind(os.path.join(tempfile.gettempdir(), "s"))
            open(os.path.join(tempfile.gettempdir(), "f"), "w").close()
            print("ready", flush=True); input()
            """, stdin=subprocess.PIPE) as child:
        child.stdout.readline()
        assert f"unix socket {check.tmp}/s" in check.leaks()
        child.communicate("\n")
    # the name of the socket stays as a file
    assert check.settle(grace=0) == [f"file {check.tmp}/f", f"file {check.tmp}/s"]


def test_the_fixture_fails_the_test_that_leaks_and_cleans_up_for_the_next(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_inner.py").write_text(textwrap.dedent("""
        import os, subprocess, tempfile, pytest
        from tests.support import leaks
        leaks.GRACE = 0.2
        pytestmark = pytest.mark.usefixtures("no_leaks")

        def test_leaks():
            subprocess.Popen(["setsid", "sleep", "1000"]).wait
            tempfile.mkstemp()

        def test_next_is_clean():
            assert tempfile.gettempdir() == os.environ["TMPDIR"] and not os.listdir(os.environ["TMPDIR"])
        """))
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "PYTEST_ADDOPTS": ""}
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "tests.support.leaks", "-p", "no:cacheprovider", "-q",
                           str(tmp_path)], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert "2 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "ERROR at teardown of test_leaks" in done.stdout
    assert "sleep 1000" in done.stdout and "file /" in done.stdout and "descriptor" in done.stdout


def test_an_outer_launchers_variables_do_not_reach_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PMI_RANK", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_SIZE", "SLURM_JOB_ID", "MPIFLUX_URI"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("KEPT", "1")
    env = clean_environment({"ADDED": "1", "HOME": None})
    assert env["KEPT"] == "1" and env["ADDED"] == "1" and "HOME" not in env
    assert not [name for name, value in env.items() if value == "7"]
    assert env["PATH"].startswith(os.path.dirname(sys.executable) + os.pathsep)


HUNG = """
import os, signal, subprocess, sys, time
from mpi4py import MPI
signal.signal(signal.SIGTERM, signal.SIG_IGN)
job = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print("hung", MPI.COMM_WORLD.rank, os.getpid(), job.pid, flush=True)
MPI.COMM_WORLD.recv(source=MPI.ANY_SOURCE)
"""


@pytest.mark.mpi
def test_a_hung_program_is_killed_with_all_its_processes(check: LeakCheck) -> None:
    with start_mpi(2, ["-c", HUNG], env=check.environ) as run:
        run.wait_for("hung 0")
        run.wait_for("hung 1")
        segments = procs.shared_memory(run.members())
        with pytest.raises(MpiTimeoutError, match=r"did not end within 0\.3 s") as caught:
            run.wait(0.3)
    lines = [line.split() for line in caught.value.stdout.splitlines() if line.startswith("hung")]
    pids = {int(pid) for line in lines for pid in line[2:]}
    assert [path for path in segments if os.path.exists(path)] == []
    assert len(pids) == 4 and pids <= {p.pid for p in caught.value.killed}
    for pid in pids:
        left = procs.stat(pid)
        assert left is None or left.zombie
    assert check.settle() == []


@pytest.mark.mpi
def test_run_mpi_keeps_its_time_limit_wherever_the_program_hangs(check: LeakCheck) -> None:
    with pytest.raises(MpiTimeoutError):
        run_mpi(2, ["-c", HUNG], timeout=0.5, env=check.environ)
    assert check.settle() == []


@pytest.mark.mpi
def test_ranks_find_each_other_and_their_output_and_status_come_back() -> None:
    code = ("import sys; from mpi4py import MPI; c = MPI.COMM_WORLD;"
            "sys.stdout.write(f'sum {c.allreduce(c.rank)}\\n'); sys.stderr.write(f'err {c.rank}\\n')")
    done = run_mpi(4, ["-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["sum 6"] * 4
    assert sorted(line for line in done.stderr.splitlines() if line.startswith("err")) == [f"err {i}" for i in range(4)]
    assert run_mpi(1, ["-c", "raise SystemExit(3)"]).returncode == 3


@pytest.mark.mpi
def test_leaving_the_context_ends_the_run() -> None:
    with start_mpi(2, ["-c", HUNG]) as run:
        run.wait_for("hung")
        assert len(run.members()) >= 3
    assert run.process.returncode is not None
    assert [p for p in run.members() if not p.zombie] == []


def test_the_mark_is_found_only_in_processes_that_carry_it() -> None:
    value = os.urandom(8).hex()
    with subprocess.Popen(["sleep", "1000"], env={MARK: value}) as marked, \
            subprocess.Popen(["sleep", "1000"], env={MARK: value + "x"}) as other:
        deadline = time.monotonic() + 10
        while not (found := procs.marked(MARK, value, procs.everyone())) and time.monotonic() < deadline:
            time.sleep(0.01)  # until the child has exec'ed
        marked.kill()
        other.kill()
    assert {p.pid for p in found} == {marked.pid}
