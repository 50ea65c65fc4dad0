"""Ranks started with no MPI launcher: they find each other, end together, and nothing stays behind."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mpiflux.instance.selflaunch import exit_status, launch, survivors_go_on
from tests.support import procs
from tests.support.mpi import MpiRun, clean_environment, installed_stack

ROOT = Path(__file__).parents[2]
LIMIT = 60.0

LAUNCHER = """
import os, sys
from mpiflux.instance import selflaunch
for name, value in {settings!r}.items():
    setattr(selflaunch, name, value)
sys.exit(selflaunch.launch(sys.argv[2:], int(sys.argv[1]), os.environ,
                           lambda line: print('mpiflux:', line, file=sys.stderr, flush=True)))
"""


def command(ranks: int, argv: list[str], **settings: float) -> list[str]:
    return [sys.executable, "-c", LAUNCHER.format(settings=settings), str(ranks), *argv]


def start(ranks: int, code: str, env: Mapping[str, str] | None = None, **settings: float) -> MpiRun:
    environ = clean_environment({"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})})
    return MpiRun(command(ranks, [sys.executable, "-c", code], **settings), environ, None)


def run(ranks: int, code: str, env: Mapping[str, str] | None = None,
        **settings: float) -> subprocess.CompletedProcess[str]:
    with start(ranks, code, env, **settings) as started:
        return started.wait(LIMIT)


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"in {LIMIT} s never: {what}")
        time.sleep(0.02)


RANK = "import os, signal, sys, time; rank = int(os.environ['PMI_RANK'])\n"
SPEAK_PMI = RANK + """
import socket
pmi = socket.socket(fileno=int(os.environ["PMI_FD"]))
def ask(line):
    pmi.sendall(line.encode() + b"\\n")
    return pmi.recv(4096).decode().strip()
def up():
    ask("cmd=init pmi_version=1 pmi_subversion=1")
    return ask("cmd=barrier_in")
def say(text):
    os.write(1, (text + "\\n").encode())
"""
"""A stand-in for an MPI library, where a test is about the launcher and any client of PMI-1 will do."""


@pytest.fixture
def mpich() -> None:
    try:
        name = installed_stack().name
    except RuntimeError:
        pytest.skip("no MPI wheel beside this interpreter")
    if name != "mpich":
        pytest.skip(f"{name} does not speak PMI-1, which is what this test is about")


# -- real MPI ----------------------------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.usefixtures("mpich")
def test_four_ranks_make_one_world_and_the_launcher_is_detected() -> None:
    code = """
import os, sys
from mpi4py import MPI
from mpiflux.instance.launcher import detect, mismatch
w = MPI.COMM_WORLD
w.Barrier()
found = detect(os.environ)
assert found[:5] == ("mpiflux", w.rank, w.size, w.rank, w.size), found
assert mismatch(found, w.size, MPI.Get_library_version()) is None
sys.stdout.write(f"{w.allreduce(w.rank)} of {w.size}\\n")
"""
    done = run(4, code)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["6 of 4"] * 4), done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(("rank_0", "patience", "status", "told"), [
    ("time.sleep(0.3); sys.exit(2)", 60.0, 2, ""),
    ("time.sleep(0.3); sys.exit(0)", 60.0, 0, "mpiflux: rank 1 exited with status 2; the others go on\n"),
    ("time.sleep(2.0); sys.exit(2)", 0.1, 2, "mpiflux: rank 1 exited with status 2; the others go on\n"),
])
def test_nobody_goes_on_where_all_end_with_what_is_wrong(rank_0: str, patience: float, status: int, told: str) -> None:
    """An error in a workflow ends every rank, rank 0 maybe last."""
    done = run(2, SPEAK_PMI + f"up()\nif rank: sys.exit(2)\n{rank_0}", PATIENCE=patience)
    assert (done.returncode, done.stderr) == (status, told)


@pytest.mark.mpi
@pytest.mark.usefixtures("mpich")
def test_mpi_abort_ends_all_with_its_code() -> None:
    code = "from mpi4py import MPI; w = MPI.COMM_WORLD; w.Barrier(); w.rank == 2 and w.Abort(9); w.Barrier()"
    done = run(3, code)
    assert done.returncode == 9, done.stderr


@pytest.mark.mpi
@pytest.mark.usefixtures("mpich")
def test_survivors_go_on_without_a_killed_rank() -> None:
    code = """
import os, signal, sys
from mpi4py import MPI
w = MPI.COMM_WORLD
w.Barrier()
if w.rank == 2:
    os.kill(os.getpid(), signal.SIGKILL)
if w.rank == 1:
    w.send("alive", dest=0)
if w.rank == 0:
    sys.stdin.read()
    sys.stdout.write(w.recv(source=1) + "\\n"); sys.stdout.flush()
os._exit(0)
"""
    done = run(3, code)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
    assert done.stderr == "mpiflux: rank 2 died of SIGKILL; the others go on\n"


@pytest.mark.mpi
@pytest.mark.usefixtures("mpich")
def test_a_rank_that_dies_before_mpi_init_ends_the_others() -> None:
    code = """
import os, sys
if os.environ["PMI_RANK"] == "1":
    sys.exit(5)
from mpi4py import MPI
"""
    done = run(3, code)
    assert done.returncode == 5
    assert "rank 1 exited with status 5 before all were up" in done.stderr


@pytest.mark.mpi
@pytest.mark.usefixtures("mpich")
@pytest.mark.parametrize("killed", [False, True])
def test_no_shared_memory_is_left_by_ranks_that_do_not_finalize(killed: bool) -> None:
    code = """
import os, sys, time
from mpi4py import MPI
MPI.COMM_WORLD.Barrier()
(name,) = {line.split()[-1] for line in open("/proc/self/maps") if "/dev/shm/mpich" in line}
sys.stdout.write(f"in {name} \\n"); sys.stdout.flush()
MPI.COMM_WORLD.Barrier()
time.sleep(1000) if len(sys.argv) > 1 else os._exit(0)
"""
    environ = clean_environment({"PYTHONPATH": str(ROOT)})
    with MpiRun(command(2, [sys.executable, "-c", code, *(["killed"] if killed else [])]), environ, None) as started:
        started.wait_for(" \n")
        name = started.stdout.split()[1]
        assert name.startswith("/dev/shm/mpich_shm_")
        if killed:
            assert os.path.exists(name)
            started.signal(signal.SIGKILL)
            started.process.wait(LIMIT)
            until(lambda: not os.path.exists(name), "the guard removes it")
        else:
            assert started.wait(LIMIT).returncode == 0
            assert not os.path.exists(name)


# -- how ranks end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code, status", [
    ("sys.exit(3 if rank == 0 else 0)", 3),
    ("pass", 0),
    ("rank == 0 and os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM),
])
def test_rank_0s_status_is_the_status(code: str, status: int) -> None:
    assert run(2, RANK + code).returncode == status


def test_when_all_fail_at_start_rank_0_gets_to_say_why() -> None:
    done = run(3, RANK + "time.sleep(0.5 if rank == 0 else 0)\n"
               "sys.exit('workflow.yaml:3:1: no such key' if rank == 0 else 2)", PATIENCE=30.0)
    assert (done.returncode, done.stderr) == (1, "workflow.yaml:3:1: no such key\n")


def test_a_rank_killed_before_mpi_is_up_ends_the_others() -> None:
    done = run(2, RANK + "os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(1000)")
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr == "mpiflux: rank 1 died of SIGKILL before all were up; ending the others\n"


def test_death_of_rank_0_ends_the_others_with_kill_if_need_be() -> None:
    code = SPEAK_PMI + """
signal.signal(signal.SIGTERM, lambda *_: say(f"{rank} ignores TERM"))
up()
if rank == 0:
    os.kill(os.getpid(), signal.SIGSEGV)
while True:
    time.sleep(1)
"""
    done = run(2, code, GRACE=0.3)
    assert done.returncode == 128 + signal.SIGSEGV
    assert done.stdout == "1 ignores TERM\n"
    assert done.stderr == "mpiflux: rank 0 died of SIGSEGV; ending the others\n"


def test_ranks_that_outlive_rank_0_for_long_are_ended() -> None:
    done = run(2, SPEAK_PMI + "up(); rank and time.sleep(1000)", LINGER=0.3)
    assert done.returncode == 0
    assert done.stderr == "mpiflux: rank 0 has ended; ending rank 1\n"


def test_a_barrier_that_cannot_complete_is_no_hang() -> None:
    done = run(3, SPEAK_PMI + "up() if rank != 1 else None", PATIENCE=0.3)
    assert done.returncode == 1
    assert "waits in MPI_Init or MPI_Finalize for ranks that have gone (1)" in done.stderr


def test_a_stuck_barrier_takes_the_status_of_who_left_it() -> None:
    code = SPEAK_PMI + """
ask("cmd=init pmi_version=1 pmi_subversion=1")
if rank == 1:
    time.sleep(0.2)
    sys.exit(5)
ask("cmd=barrier_in")
"""
    done = run(3, code, PATIENCE=0.3)
    assert done.returncode == 5
    assert "rank 1 exited with status 5" in done.stderr and "gone (1)" in done.stderr


def test_garbage_on_the_pmi_socket_ends_the_program_with_a_clear_line() -> None:
    done = run(2, SPEAK_PMI + "time.sleep(1000) if rank == 0 else say(ask('GET / HTTP/1.1'))", GRACE=0.3)
    assert done.returncode == 1
    assert "rank 1 sent 'GET / HTTP/1.1' on its PMI socket: it does not speak PMI-1" in done.stderr


def test_an_abort_is_heard_even_from_a_rank_that_is_gone_at_once() -> None:
    code = SPEAK_PMI + "up(); pmi.sendall(b'cmd=abort exitcode=6 message=no more\\n') if rank else time.sleep(1000)"
    done = run(2, code)
    assert done.returncode == 6
    assert done.stderr == "mpiflux: no more\n"


@pytest.mark.parametrize("name, status, words", [
    ("no-such-command-anywhere", 127, "there is no such command"),
    ("./plain", 126, "may not be executed"),
])
def test_a_command_that_cannot_start(name: str, status: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    with MpiRun(command(2, [name]), clean_environment({"PYTHONPATH": str(ROOT)}), tmp_path) as started:
        done = started.wait(LIMIT)
    assert done.returncode == status
    assert done.stderr.count("\n") == 1 and name in done.stderr and words in done.stderr


def test_too_few_descriptors_are_a_clear_line_and_started_ranks_end() -> None:
    shell = ["sh", "-c", 'ulimit -n 24; exec "$@"', "sh", *command(40, ["sleep", "1000"])]
    with MpiRun(shell, clean_environment({"PYTHONPATH": str(ROOT)}), None) as started:
        done = started.wait(LIMIT)
    assert done.returncode == 3
    assert "ask for fewer --ranks" in done.stderr and "Traceback" not in done.stderr


def test_starting_and_detecting_import_little() -> None:
    code = ("import sys, mpiflux.instance.selflaunch, mpiflux.instance.launcher;"
            "print([m for m in ('asyncio', 'numpy', 'msgspec', 'yaml', 'mpi4py', 'subprocess') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], env=clean_environment({"PYTHONPATH": str(ROOT)}),
                          capture_output=True, text=True, timeout=LIMIT)
    assert done.stdout.strip() == "[]", done.stderr


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 1 rank"):
        launch(["true"], 0, {}, print)
    with pytest.raises(ValueError, match="give a command"):
        launch([], 1, {}, print)


def test_an_absurd_number_of_ranks_is_refused_before_any_starts(tmp_path: Path) -> None:
    told: list[str] = []
    argv = ["touch", str(tmp_path / "started")]
    assert launch(argv, 64 * len(os.sched_getaffinity(0)) + 1, os.environ, told.append) == 2
    assert len(told) == 1 and "CPU" in told[0] and not os.listdir(tmp_path)


def test_whether_survivors_go_on() -> None:
    assert survivors_go_on(1, mpi_up=True)
    assert not survivors_go_on(1, mpi_up=False)
    assert not survivors_go_on(0, mpi_up=True)
    assert [exit_status(code) for code in (0, 3, -9)] == [0, 3, 137]


# -- what ranks get ----------------------------------------------------------------------------------------------


def test_outer_launchers_are_hidden_and_the_allocation_is_not() -> None:
    env = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "PMIX_RANK": "3", "MPICH_DEBUG": "1"}
    code = RANK + ("print(*sorted(n for n in os.environ if n.startswith(('SLURM', 'PMI', 'MPICH', 'MPIFLUX'))))"
                   " if rank == 1 else None")
    done = run(2, code, env)
    assert done.stdout.split() == [
        "MPICH_DEBUG", "MPIFLUX_LAUNCH_LOCAL_RANK", "MPIFLUX_LAUNCH_LOCAL_SIZE", "MPIFLUX_LAUNCH_RANK",
        "MPIFLUX_LAUNCH_SIZE", "PMI_FD", "PMI_RANK", "PMI_SIZE", "SLURM_JOB_ID"]


def test_stdin_is_rank_0s_and_each_rank_has_one_pmi_descriptor() -> None:
    code = RANK + """
listed = [int(fd) for fd in os.listdir("/proc/self/fd")]
fds = sorted(fd for fd in listed if os.path.exists(f"/proc/self/fd/{fd}"))  # not the listing's own
assert fds == [0, 1, 2, int(os.environ["PMI_FD"])], fds
ignored = int(open("/proc/self/status").read().split("SigIgn:")[1].split()[0], 16)
ours = ignored & 0x7fffffff  # glibc's posix_spawn leaves its own 32 and 33 ignored
assert ours == 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1, hex(ours)  # as each Python does for itself
os.write(1, f"{rank}:{sys.stdin.read()}\\n".encode())
"""
    environ = clean_environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run(command(3, [sys.executable, "-c", code]), input="hello", text=True, env=environ,
                          capture_output=True, timeout=LIMIT)
    assert (done.returncode, sorted(done.stdout.split())) == (0, ["0:hello", "1:", "2:"]), done.stderr


# -- signals -----------------------------------------------------------------------------------------------------

COUNTS = SPEAK_PMI + """
seen = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda n, _: (seen.append(n), say(f"{rank} got {signal.Signals(n).name}")))
up()
say(f"{rank} ready")
while signal.SIGTERM not in seen:
    time.sleep(0.05)
sys.exit(0 if rank else 4)
"""


def test_signals_reach_every_rank_once() -> None:
    with start(3, COUNTS) as started:
        for rank in range(3):
            started.wait_for(f"{rank} ready")
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            started.signal(number)
            for rank in range(3):
                started.wait_for(f"{rank} got {number.name}")
        done = started.wait(LIMIT)
    assert done.returncode == 4
    got = [line for line in done.stdout.splitlines() if "got" in line]
    assert len(got) == len(set(got)) == 15
    assert done.stderr == ""


def test_what_nohup_ignores_stays_ignored() -> None:
    code = RANK + """
if rank == 0:
    os.kill(os.getppid(), signal.SIGHUP)
    time.sleep(0.3)
print(signal.getsignal(signal.SIGHUP).name)
"""
    environ = clean_environment({"PYTHONPATH": str(ROOT)})
    shell = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command(2, [sys.executable, "-c", code])]
    done = subprocess.run(shell, env=environ, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stdout.split()) == (0, ["SIG_IGN"] * 2), done.stderr


@pytest.mark.parametrize("stubborn", [False, True])
def test_nothing_is_left_when_the_launcher_itself_is_killed(stubborn: bool) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    code = SPEAK_PMI + ignore + """
import subprocess
subprocess.Popen(["sleep", "1000"]) if rank else None   # a child in the rank's own process group
up(); say(f"{rank} ready"); time.sleep(1000)
"""
    if not stubborn:
        code = code.replace("subprocess.Popen", "() and subprocess.Popen")
    with start(2, code, GRACE=0.3) as started:
        started.wait_for("0 ready")
        started.wait_for("1 ready")
        assert len(started.members()) == (5 if stubborn else 4), "launcher, guard, ranks, and the child if any"
        started.signal(signal.SIGKILL)
        started.process.wait(LIMIT)
        until(lambda: all(p.zombie for p in started.members()), "all have ended")


def test_a_killed_guard_does_not_disturb() -> None:
    code = SPEAK_PMI + "up(); say(f'{rank} ready'); sys.stdout.flush(); time.sleep(1000)"
    with start(1, code) as started:
        started.wait_for("0 ready")
        children = {p for p in started.members() if p.parent == started.process.pid}
        (guard,) = [p for p in children if "PMI_FD" not in _environ(p)]
        procs.kill(guard)
        started.signal(signal.SIGTERM)
        assert started.wait(LIMIT).returncode == 128 + signal.SIGTERM


def _environ(process: procs.Process) -> str:
    return Path(f"/proc/{process.pid}/environ").read_text(errors="replace")


# -- a terminal --------------------------------------------------------------------------------------------------


class Terminal:
    """A program with a terminal of its own, as a login shell would give it."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(argv[0], argv, clean_environment({"PYTHONPATH": str(ROOT)}))
        self.text = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass

    def wait_for(self, text: str) -> None:
        os.set_blocking(self.fd, False)

        def seen() -> bool:
            try:
                self.text += os.read(self.fd, 4096).decode(errors="replace")
            except BlockingIOError:
                pass
            except OSError:
                return text in self.text  # the other end is closed
            return text in self.text

        until(seen, f"{text!r} in {self.text!r}")

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_on_a_terminal_rank_0_reads_and_ctrl_c_reaches_it_once() -> None:
    code = SPEAK_PMI + """
seen = []
signal.signal(signal.SIGINT, lambda *_: (seen.append(1), say("one more")))
up()
if rank == 0:
    say("got " + sys.stdin.readline().strip())
    while not seen:
        time.sleep(0.05)
    time.sleep(0.3)
    say(f"in all {len(seen)}")
"""
    with Terminal(command(2, [sys.executable, "-c", code])) as terminal:
        terminal.type("words\n")
        terminal.wait_for("got words")
        terminal.type("\x03")
        terminal.wait_for("in all 1")
        assert terminal.status() == 0


def test_ctrl_z_stops_everything_and_fg_goes_on() -> None:
    """A real shell with job control around it."""
    code = SPEAK_PMI + """
up()
if rank == 0:
    say("go"); say("line " + sys.stdin.readline().strip())
else:
    sys.exit(0)
"""
    shell = ["/bin/sh", "-i"]
    with Terminal(shell) as terminal:
        script = shlex.join(command(2, [sys.executable, "-c", code]))
        terminal.type("stty -echo; PS1=prompt-; set -m\n")
        Path(os.environ["TMPDIR"], "job").write_text(f"exec {script}\n")
        terminal.type("sh $TMPDIR/job\n")
        terminal.wait_for("go")
        terminal.type("\x1a")
        terminal.wait_for("topped")
        terminal.text = ""
        terminal.type("fg\n")
        terminal.wait_for("job")  # the shell says what goes on, and reads no more itself
        terminal.type("hello\n")
        terminal.wait_for("line hello")
        terminal.type("rm $TMPDIR/job; exit 5\n")
        assert terminal.status() == 5
