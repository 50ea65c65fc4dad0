"""What mpirun is told for jobs of Open MPI, and what is read out of what it says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.instance.launcher import detect, is_a_task
from mpiflux.model import openmpi, pmixlooks
from mpiflux.model.openmpi import End
from mpiflux.node.wording import ending

TASKS, NODES = (2, 3, 1), ("n0", "n1", "n2")
PRTED = ('PRTE_PREFIX=/o;export PRTE_PREFIX;/o/bin/prted --daemonize --prtemca ess "env" --prtemca ess_base_vpid {} '
         '--prtemca prte_hnp_uri "prterun-a-1@0.0;tcp://10.0.0.1:4:24"')

EXIT_5 = """prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-vm-7690@1,1]
   Exit code:    139
"""
EXIT_4 = """mpirun detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [[11537,1],2]
  Exit code:    7
"""
ABORT_5 = """MPI_ABORT was invoked on rank 2 in communicator MPI_COMM_WORLD
  Proc: [[39408,1],2]
  Errorcode: 3
"""
ABORT_SPLIT_5 = """MPI_ABORT was invoked on rank 0 in communicator MPI COMMUNICATOR 4 SPLIT FROM 0
  Proc: [[39408,1],5]
  Errorcode: 9
"""
LEFT_5 = """prterun has exited due to process rank 1 with PID 13 on node vm exiting
improperly. There are three reasons this could occur:
"""
LEFT_4 = """mpirun has exited due to process rank 1 with PID 13 on
node vm exiting improperly. There are three reasons this could occur:
"""
ABORT_4 = "MPI_ABORT was invoked on rank 2 in communicator MPI_COMM_WORLD\nwith errorcode 3.\n"
ABORT_SPLIT_4 = ("MPI_ABORT was invoked on rank 0 in communicator MPI COMMUNICATOR 4 SPLIT FROM 0\n"
                 "with errorcode 9.\n")


@pytest.mark.parametrize(("said", "major"), [
    ("mpirun (Open MPI) 5.0.11\n\nReport bugs to", 5), ("mpirun (Open MPI) 4.1.4", 4), ("mpiexec (OpenRTE) 4.0.2", 4),
    ("HYDRA build details:\n    Version: 5.0", 0), ("Intel(R) MPI Library for Linux* OS, Version 2021.18", 0), ("", 0),
])
def test_versions(said: str, major: int) -> None:
    assert openmpi.version(said) == major
    assert bool(openmpi.unsuitable("/x/mpirun", said)) is not bool(major)


def test_what_is_wrong_with_an_mpirun_is_said() -> None:
    old = openmpi.unsuitable("/x/mpirun", "mpirun (Open MPI) 3.1.6")
    assert "/x/mpirun" in old and "Open MPI 3" in old and "PATH" in old
    assert "mpi: pmi1" in openmpi.unsuitable("/x/mpirun", "HYDRA build details:")


@pytest.mark.parametrize(("said", "code", "returncode", "words"), [
    (EXIT_5, 139, -11, "task 1 on n0 was killed by signal 11 (SIGSEGV)"),
    (EXIT_4, 7, 7, "task 2 on n1 ended with exit code 7"),
    (ABORT_5, 3, 3, "task 2 on n1 aborted with code 3"), (ABORT_4, 3, 3, "task 2 on n1 aborted with code 3"),
    (ABORT_SPLIT_5, 9, 9, "task 5 on n2 aborted with code 9"), (ABORT_SPLIT_4, 9, 9, "a task aborted with code 9"),
    ("noise\n" + ABORT_5 + EXIT_5, 3, 3, "task 2 on n1 aborted with code 3"),
    ("ORTE has lost communication with a remote daemon.", 1, 1, "daemon"),
    (ABORT_4.replace("errorcode 3", "errorcode -1"), 1, 255, "task 2 on n1 aborted with code -1"),
    (ABORT_4.replace("errorcode 3", "errorcode 300"), 1, 44, "task 2 on n1 aborted with code 300"),
    (ABORT_4.replace("errorcode 3", "errorcode 0"), 1, 1, "task 2 on n1 aborted with code 0"),
    (LEFT_5, 1, 1, "task 1 on n0 ended without MPI_Finalize"),
    (LEFT_4, 1, 1, "task 1 on n0 ended without MPI_Finalize"),
    (EXIT_4.replace("7\n", "255\n"), 255, 255, "task 2 on n1 ended with exit code 255"),
    ("", 213, 213, "mpirun on n0 ended with exit code 213"), ("", -9, -9, "mpirun on n0 was killed by signal 9"),
])
def test_the_end_is_explained(said: str, code: int, returncode: int, words: str) -> None:
    found, reason = openmpi.ending(said, code, TASKS, NODES, ending)
    assert found == returncode
    assert words in reason


def test_what_tasks_say_of_their_ends() -> None:
    assert openmpi.ends("3 139\n0 143\nnonsense\n1 x\n4 7\n") == [End(3, 139), End(0, 143), End(4, 7)]
    assert [end.is_cause for end in openmpi.ends("3 139\n0 143\n1 137\n4 7\n")] == [True, False, False, True]
    assert [End(0, status).signal for status in (128, 129, 192, 193, 255)] == [0, 1, 64, 0, 0]
    assert [openmpi.code(status) for status in (-9, 0, 7, 137, 255)] == [-9, 0, 7, -9, 255]
    assert openmpi.reason(End(5, 139), TASKS, NODES, ending) == (-11, "task 5 on n2 was killed by signal 11 (SIGSEGV)")


@pytest.mark.parametrize(("first", "nodes", "hosts"), [
    ("a", ["a", "b"], ["a", "b"]),
    ("vm", ["n0", "n1"], ["vm", "n1"]),
    ("vm", ["n0", "vm"], ["vm", "mpiflux-node-1"]),  # mpirun would take it for the host that it is on
    ("a.x", ["a.x", "b.x", "b.y"], ["a.x", "mpiflux-node-1", "mpiflux-node-2"]),
])
def test_no_two_hosts_have_a_name(first: str, nodes: list[str], hosts: list[str]) -> None:
    assert openmpi.host_names(first, nodes) == hosts


def test_tasks_fill_node_after_node() -> None:
    words = openmpi.command("/o/bin/mpirun", ["a", "b"], [2, 3])
    assert words[:5] == ["/o/bin/mpirun", "-np", "5", "--host", "a:2,b:3"]
    assert words[words.index("--map-by") + 1] == "slot" and words[words.index("--bind-to") + 1] == "none"


def told(commands: list[str], apart: bool = False) -> list[str]:
    """What each node makes of what the first one put."""
    space = openmpi.puts(commands, apart)
    assert all(len(value) <= openmpi.CHUNK and value.isprintable() for value in space.values())
    read = [openmpi.joined([space[key] for key in openmpi.keys(name, int(space[name]))])
            for name in ("mpirun", *(f"mpirun.{part}" for part in range(2, len(commands) + 1)))]
    first = read[0]
    assert isinstance(first, list) and first[1] is apart
    return [openmpi.daemon(first[0], None), *(openmpi.daemon(first[0], other) for other in read[1:])]


@given(st.lists(st.text(max_size=30).map(lambda text: text.replace("--daemonize", "")), min_size=1, max_size=5),
       st.booleans())
def test_commands_reach_their_nodes(commands: list[str], apart: bool) -> None:
    assert told(commands, apart) == commands


def test_daemons_stay_and_cost_little_to_tell() -> None:
    commands = [PRTED.format(vpid) for vpid in range(1, 1001)]
    daemons = told(commands)
    assert daemons[998] == commands[998].replace("--daemonize", "--leave-session-attached")
    assert openmpi.is_old("A=b; /o/bin/orted -mca ess env") and not openmpi.is_old(daemons[998])
    assert told(["orted --daemonize -mca ess env"]) == ["orted -mca ess env"]
    assert sum(map(len, openmpi.puts(commands).values())) < 60 * len(commands)


_WORD = st.binary(max_size=20).filter(lambda word: b"\0" not in word)


@settings(max_examples=30)
@given(words=st.lists(_WORD, max_size=4), value=_WORD)
def test_a_task_is_what_was_asked_for(words: list[bytes], value: bytes) -> None:
    program = b'printf "%s\\0" "$@" "$X" "${GONE-gone}" "$MPIFLUX_TASK_RANK"'
    line = openmpi.task_line({b"X": value, b"GONE": None}, [b"/bin/sh", b"-c", program, b"sh", *words], b"/no/where")
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=True,
                          env={"OMPI_COMM_WORLD_RANK": "3", "PATH": os.environ["PATH"], "GONE": "x"})
    assert done.stdout.split(b"\0")[:-1] == [*words, value, b"gone", b"3"]


@pytest.mark.parametrize(("program", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -11 $$", 139)])
def test_a_task_says_how_it_ended(tmp_path: Path, program: str, status: int) -> None:
    ends = tmp_path / "ends"
    line = openmpi.task_line({}, [b"/bin/sh", b"-c", program.encode()], os.fsencode(ends))
    done = subprocess.run(["/bin/sh", "-c", line], env={"OMPI_COMM_WORLD_RANK": "3"}, capture_output=True, check=False)
    assert (done.returncode, done.stderr, ends.read_text()) == (status, b"", f"3 {status}\n")


@pytest.mark.parametrize("variable", ["PMIX_SERVER_URI2", "PMIX_SERVER_URI3", "PMIX_SERVER_URI41"])
def test_the_first_task_says_that_it_has_begun_and_reads_what_it_is_given(tmp_path: Path, variable: str) -> None:
    ends, stdin = tmp_path / "ends", tmp_path / "it's"
    stdin.write_text("given")
    os.mkfifo(ends)
    line = openmpi.task_line({}, [b"/bin/cat"], os.fsencode(ends), os.fsencode(stdin), tells=True, server=True)
    fifo = os.open(ends, os.O_RDWR)
    done = subprocess.run(["/bin/sh", "-c", line], input=b"another's", capture_output=True, check=True, env={
        "OMPI_COMM_WORLD_RANK": "0", "PATH": os.environ["PATH"], variable: "a@0.0;tcp4://127.0.0.1:4711"})
    said = os.read(fifo, 4096).decode()
    os.close(fifo)
    assert (done.stdout, said) == (b"given", f"{openmpi.BEGUN}\nserver a@0.0;tcp4://127.0.0.1:4711\n0 0\n")
    assert pmixlooks.server_port(said) == 4711


def test_names_that_a_shell_drops() -> None:
    assert [name for name in (b"A", b"_1", b"BASH_FUNC_module%%", b"A.B", b"C-D", b"1A", b"") if openmpi.is_shells(name)
            ] == [b"A", b"_1"]


@pytest.mark.parametrize(("value", "limit"), [(None, 60), ("2.5", 2.5), ("0", 0), ("-1", 0), ("soon", 60)])
def test_how_long_daemons_may_take(value: str | None, limit: float) -> None:
    assert openmpi.start_limit({} if value is None else {openmpi.START_LIMIT: value}) == limit


def test_daemons_that_do_not_come_are_told_with_the_setting_that_helps() -> None:
    assert "(n1, n2) within 60 s" in openmpi.unreached(NODES, 60, 5)
    assert "PRTE_MCA_oob_tcp_if_include" in openmpi.unreached(NODES, 60, 5)
    assert "OMPI_MCA_oob_tcp_if_include" in openmpi.unreached(NODES, 60, 4)
    assert "(n1, n2, n3, …)" in openmpi.unreached(["n0", "n1", "n2", "n3", "n4"], 60, 5)


def test_agents_leave_what_they_are_given(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_text(openmpi.AGENT)
    (tmp_path / "bell").touch()
    subprocess.run(["/bin/sh", str(agent), "n1", "A=b;", "/o/prted", '"x y"'], check=True)
    assert (tmp_path / "host.n1").read_text() == 'A=b; /o/prted "x y"'
    assert (tmp_path / "bell").read_text() == "n1\n"


def test_a_task_is_told_from_what_runs_inside_it() -> None:
    inside = {"MPIFLUX_JOB_ID": "3", "MPIFLUX_NODE": "n1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
              "PMIX_NAMESPACE": "prterun-a-1@1", "MPIFLUX_PMIX": "prterun-a-1@1"}
    assert is_a_task(inside, "openmpi") and detect(inside).node_name == "n1"
    own = {**inside, "PMIX_NAMESPACE": "prterun-a-2@1"}
    assert not is_a_task(own, "openmpi") and detect(own).node_name is None
