"""How jobs, and whatever they started, are brought to an end: limits, cancellation, interruption, killed runtimes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpiflux.model import messages as m
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.records import FLAG_NOT_STARTED
from mpiflux.model.states import Result
from mpiflux.node import endings, outside
from mpiflux.node.executors import MOST_STILLBORN
from tests.support.daemons import alive, daemon, pid_in, soon_gone
from tests.support.leaks import LeakCheck
from tests.support.node import Node

PYTHON = sys.executable


__all__ = ["daemon"]


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(endings, "GRACE", 0.6)
    with Node() as made:
        yield made


# -- time limits -----------------------------------------------------------------------------------------------------


def test_a_job_over_its_time_limit_is_terminated(node: Node) -> None:
    done = node.sh("echo began; exec sleep 60", time_limit=0.2)
    assert (done.result, done.returncode, done.stdout) == (Result.TIMEOUT, -signal.SIGTERM, b"began\n")
    assert done.reason == "exceeded its time limit of 0.2 s"
    assert 0.2 <= done.seconds < 5


def test_a_job_within_its_time_limit(node: Node) -> None:
    assert node.run("sleep", "0.1", time_limit=60.0).result is Result.COMPLETED


def test_a_job_that_ignores_term_is_killed_after_the_grace(node: Node) -> None:
    done = node.sh("trap '' TERM; echo deaf; while :; do sleep 0.05; done", time_limit=0.2)
    assert (done.result, done.returncode, done.stdout) == (Result.TIMEOUT, -signal.SIGKILL, b"deaf\n")
    assert done.seconds >= 0.2 + 0.6


def test_a_job_that_tidies_up_when_terminated(node: Node) -> None:
    for code in (7, 0):
        done = node.sh(f"trap 'echo bye; exit {code}' TERM; sleep 60 & wait", time_limit=0.2)
        assert (done.result, done.returncode, done.stdout) == (Result.TIMEOUT, code, b"bye\n")


@pytest.mark.parametrize("manners", ["", "silent", "deaf", "deaf silent", "anonymous", "anonymous silent"])
def test_a_time_limit_reaches_daemons(node: Node, daemon: str, tmp_path: Path, manners: str) -> None:
    done = node.sh(f"{daemon} {tmp_path}/pid {manners}; sleep 60", time_limit=0.7)
    assert done.result is Result.TIMEOUT
    soon_gone(pid_in(tmp_path / "pid"))


def test_many_limits_of_jobs_that_have_ended_are_forgotten(node: Node) -> None:
    group = node.declare("/bin/true", count=500, time_limit=1.0)
    node.grant(0)
    node.feed(group)
    assert {done.result for done in node.wait(500)} == {Result.COMPLETED}
    time.sleep(1.0)
    assert node.run("/bin/true").result is Result.COMPLETED


# -- what jobs leave behind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manners", ["silent", "deaf silent", "anonymous silent"])
def test_a_daemon_does_not_outlive_its_job(node: Node, daemon: str, tmp_path: Path, manners: str) -> None:
    done = node.sh(f"{daemon} {tmp_path}/pid {manners}; while ! test -e {tmp_path}/pid; do sleep 0.01; done; echo left")
    assert (done.result, done.stdout) == (Result.COMPLETED, b"left\n")
    soon_gone(int((tmp_path / "pid").read_text()))


def test_background_processes_do_not_outlive_their_job(node: Node, tmp_path: Path) -> None:
    done = node.sh(f"sleep 600 > /dev/null 2>&1 & echo $! > {tmp_path}/pid; "
                   f"env -i sleep 600 > /dev/null 2>&1 & echo $! > {tmp_path}/bare; echo ok")
    assert done.stdout == b"ok\n"
    soon_gone(int((tmp_path / "pid").read_text()), int((tmp_path / "bare").read_text()))


def test_output_of_the_background_is_waited_for(node: Node) -> None:
    done = node.sh("(sleep 0.4; echo later) & echo now")
    assert (done.result, done.stdout) == (Result.COMPLETED, b"now\nlater\n")
    assert done.seconds < 0.4, "the job itself ended at once"


def test_a_background_that_keeps_the_output_open_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(endings, "LINGER", 0.3)
    monkeypatch.setattr(endings, "GRACE", 0.3)
    with Node() as node:
        for command in (f"sleep 600 & echo $! > {tmp_path}/pid; echo now",
                        f"(trap '' TERM; while :; do sleep 0.05; done) & echo $! > {tmp_path}/pid; echo now"):
            begin = time.monotonic()
            done = node.sh(command)
            assert (done.result, done.stdout, done.returncode) == (Result.COMPLETED, b"now\n", 0)
            assert time.monotonic() - begin >= 0.3
            soon_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("how", ["env -i setsid", "setsid env MPIFLUX_JOB_ID=999", "setsid env -i setsid"])
def test_who_keeps_the_output_open_need_not_be_marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                      how: str) -> None:
    """Another job runs beside it all the time, to which such a process might belong as well."""
    monkeypatch.setattr(endings, "LINGER", 0.3)
    with Node() as node:
        node.begin(f"while ! test -e {tmp_path}/end; do sleep 0.02; done", shell=True, cores=(1,), shape=1)
        quick = node.declare(f"{how} sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600' & exit 0", shell=True)
        node.grant(0, shape=2)
        node.feed(quick, shape=2)
        done = node.wait(1)[0]
        assert (done.id, done.result) == (quick.first_id, Result.COMPLETED)
        soon_gone(pid_in(tmp_path / "pid"))
        (tmp_path / "end").touch()
        assert node.wait(2)[0].result is Result.COMPLETED


def test_who_keeps_the_output_open_and_is_no_process_of_the_job(monkeypatch: pytest.MonkeyPatch,
                                                                tmp_path: Path) -> None:
    for name in ("LINGER", "GRACE", "GIVE_UP"):
        monkeypatch.setattr(endings, name, 0.3)
    with Node() as node:
        node.begin(f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; echo said; sleep 1", shell=True)
        node.turn(0)
        # as another user's process may that was given the descriptor: nobody here can end it
        with open(f"/proc/{pid_in(tmp_path / 'pid')}/fd/1", "wb"):
            done = node.wait()[0]
        assert (done.result, done.stdout) == (Result.COMPLETED, b"said\n")
        assert node.run("echo", "next").stdout == b"next\n"


def test_an_endless_writer_in_the_background(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "LINGER", 0.3)
    with Node() as short:
        done = short.sh("yes & exit 3", output_limit=1 << 16)
    assert (done.returncode, len(done.stdout)) == (3, 1 << 16)


def test_the_pipe_of_a_job_that_left_somebody_is_not_given_to_the_next(node: Node) -> None:
    group = node.declare("test {job.index} = 0 && (sleep 0.2; echo late) & echo job {job.index}", shell=True, count=4)
    node.grant(0)
    node.feed(group)
    outputs = [done.stdout for done in node.wait(4)]
    assert outputs == [b"job 0\nlate\n", b"job 1\n", b"job 2\n", b"job 3\n"]


def test_the_daemon_of_a_running_job_stays_while_others_come_and_go(node: Node, daemon: str, tmp_path: Path) -> None:
    for name in ("marked", "anonymous"):
        node.begin(f"{daemon} {tmp_path}/{name} silent {name}; while ! test -e {tmp_path}/end; do sleep 0.02; done",
                   shell=True, cores=(0,), shape=1)
    node.turn(0)
    pids = [pid_in(tmp_path / name) for name in ("marked", "anonymous")]
    group = node.declare("/bin/true", count=20)
    node.grant(1, shape=2)
    node.feed(group, shape=2)
    node.wait(20)
    time.sleep(0.2)
    assert all(map(alive, pids))
    (tmp_path / "end").touch()
    node.wait(22)
    soon_gone(*pids)


# -- cancellation ----------------------------------------------------------------------------------------------------


def test_cancel_a_running_job_and_one_that_waits(node: Node) -> None:
    group = node.declare("sleep", "60", count=4)
    node.feed_again = False
    node.grant(0)
    node.feed(group, 0, 1)
    node.until(lambda: node.started)
    node.feed(group, 1, 4)
    ids = (group.first_id, group.first_id + 2)
    node.post(m.Cancel(ids, "not needed any more"))
    running, waiting = node.wait(2)
    assert (running.id, running.result, running.returncode) == (ids[0], Result.CANCELED, -signal.SIGTERM)
    assert (waiting.id, waiting.result, waiting.returncode) == (ids[1], Result.CANCELED, 0)
    assert waiting.flags & FLAG_NOT_STARTED
    assert {running.reason, waiting.reason} == {"not needed any more"}
    # the others were not touched: one of them runs now
    node.until(lambda: (group.first_id + 1, 1) in node.started)
    node.post(m.Cancel((), "all"))
    node.until(lambda: node.idle)
    ended = {done.id: done.reason for done in node.ended if done.result is Result.CANCELED}
    assert ended[group.first_id + 1] == "all"
    assert len(ended) + sum(len(chunk) for _, chunk in node.returned) == 4


@pytest.mark.parametrize("manners", ["", "anonymous", "anonymous silent"])
def test_cancel_reaches_daemons(node: Node, daemon: str, tmp_path: Path, manners: str) -> None:
    """And no daemon of the job beside it, which is of the same kind."""
    groups = []
    for core in (0, 1):
        groups.append(node.begin(f"{daemon} {tmp_path}/{core} {manners}; sleep 60", shell=True, cores=(core,),
                                 shape=core))
    node.turn(0)
    pids = [pid_in(tmp_path / name) for name in "01"]
    node.post(m.Cancel((groups[0].first_id,), "enough"))
    assert node.wait()[0].result is Result.CANCELED
    soon_gone(pids[0])
    time.sleep(0.2)
    assert alive(pids[1])


def test_what_ends_well_after_its_cancellation_is_canceled(node: Node, tmp_path: Path) -> None:
    group = node.begin(f"trap 'exit 0' TERM; touch {tmp_path}/up; while :; do sleep 0.05; done", shell=True)
    node.until((tmp_path / "up").exists)
    node.post(m.Cancel((group.first_id,), "enough"))
    assert (node.wait()[0].result, node.ended[0].returncode) == (Result.CANCELED, 0)


def test_cancel_with_another_result_and_twice(node: Node) -> None:
    group = node.begin("trap '' TERM; while :; do sleep 0.05; done", shell=True)
    node.until(lambda: node.started)
    node.post(m.Cancel((group.first_id,), "first", int(Result.TIMEOUT)))
    node.post(m.Cancel((group.first_id,), "second"))
    done = node.wait()[0]
    assert (done.result, done.reason, done.returncode) == (Result.TIMEOUT, "first", -signal.SIGKILL)


def test_cancel_a_job_whose_background_is_waited_for(node: Node) -> None:
    group = node.begin("sleep 600 & echo done; exit 3", shell=True)
    node.turn(0)
    time.sleep(0.3)
    begin = time.monotonic()
    node.post(m.Cancel((group.first_id,), "enough"))
    done = node.wait()[0]
    assert (done.result, done.returncode, done.stdout) == (Result.FAILED, 3, b"done\n"), "it had ended by itself"
    assert time.monotonic() - begin < endings.LINGER / 2


def test_cancelling_what_is_not_there_changes_nothing(node: Node) -> None:
    node.post(m.Cancel((999,), "no such job"))
    assert node.run("/bin/true").result is Result.COMPLETED


# -- interruption ----------------------------------------------------------------------------------------------------


def test_stop_ends_what_runs_and_forgets_what_waits(node: Node) -> None:
    group = node.declare("sleep", "60", count=10)
    node.feed_again = False
    node.grant(0)
    node.grant(1)
    node.feed(group)
    node.until(lambda: len(node.started) == 2)
    node.post(m.Stop(5.0))
    node.until(lambda: node.stopped)
    assert [(done.result, done.reason) for done in node.ended] == [(Result.LOST, "the run was interrupted")] * 2
    # and nothing starts any more
    node.feed(group, 5, 6)
    node.turn(0.2)
    assert len(node.ended) == 2


def test_stop_kills_after_its_own_grace(node: Node) -> None:
    node.begin("trap '' TERM; while :; do sleep 0.05; done", shell=True)
    node.until(lambda: node.started)
    begin = time.monotonic()
    node.post(m.Stop(0.2))
    node.until(lambda: node.stopped)
    assert time.monotonic() - begin >= 0.2
    assert node.ended[0].returncode == -signal.SIGKILL


def test_what_ends_well_after_stop_has_not_ended_for_the_run(node: Node, tmp_path: Path) -> None:
    """It may have saved a checkpoint; only the program knows whether it was done."""
    node.begin(f"trap 'exit 0' TERM; touch {tmp_path}/up; while :; do sleep 0.05; done", shell=True)
    node.until((tmp_path / "up").exists)
    node.post(m.Stop(5.0))
    node.until(lambda: node.stopped)
    assert [(done.result, done.returncode) for done in node.ended] == [(Result.LOST, 0)]


def test_stop_when_nothing_runs(node: Node) -> None:
    node.post(m.Stop(5.0))
    node.until(lambda: node.stopped)


def test_stop_does_not_wait_for_a_background(node: Node) -> None:
    node.begin("sleep 600 & echo done", shell=True)
    node.turn(0)
    time.sleep(0.3)
    begin = time.monotonic()
    node.post(m.Stop(5.0))
    node.until(lambda: node.stopped)
    assert time.monotonic() - begin < endings.LINGER / 2
    assert node.ended[0].result is Result.COMPLETED


# -- backlog and leases ----------------------------------------------------------------------------------------------


def test_a_backlog_that_does_not_move_goes_back(node: Node) -> None:
    node.feed_again = False
    group = node.declare("sleep", "0.4", count=10)
    node.grant(0)
    node.feed(group, 0, 3)
    node.feed(group, 3, 10)
    node.until(lambda: node.returned)
    assert not node.ended
    back = [index for _, chunk in node.returned for index in range(chunk.start, chunk.stop, chunk.step)]
    assert back == list(range(1, 10))
    node.wait(1)
    node.until(lambda: node.idle)


def test_a_lease_ends_when_nothing_waits_for_it(node: Node) -> None:
    lease = node.grant(0)
    node.until(lambda: node.idle == [lease])


def test_a_revoked_lease_ends_with_the_job_that_runs_on_it(node: Node) -> None:
    node.feed_again = False
    group = node.declare("sleep", "0.04", count=5)
    lease = node.grant(0)
    node.feed(group)
    node.until(lambda: node.started)
    node.post(m.Revoke(lease))
    node.until(lambda: node.idle == [lease])
    assert len(node.ended) < 5
    assert len(node.ended) == len(node.started), "the job that ran was not waited for"


# -- killed runtimes -------------------------------------------------------------------------------------------------


def test_a_killed_supervisor_takes_its_jobs_along_and_is_replaced(node: Node, daemon: str, tmp_path: Path) -> None:
    group = node.begin(f"{daemon} {tmp_path}/pid; echo $$ > {tmp_path}/main; sleep 600", shell=True)
    node.until(lambda: node.started)
    pids = [pid_in(tmp_path / name) for name in ("pid", "main")]
    victim = node.pids()[0]
    os.kill(victim, signal.SIGKILL)
    node.until(lambda: node.lost)
    assert node.lost == [0]
    # the new one may start the same jobs again: nothing of the old ones may be there any more
    assert not any(map(alive, pids))
    assert node.pids() != [victim]
    # what was declared to the old one need not be declared again
    node.post(m.ExecutorLost(0))
    (tmp_path / "pid").unlink()
    node.grant(0)
    node.feed(group, attempt=2)
    node.until(lambda: (group.first_id, 2) in node.started)
    node.post(m.Cancel())
    assert node.wait()[0].attempt == 2


def test_a_supervisor_that_stands_still_can_be_killed(node: Node) -> None:
    node.begin("sleep", "600")
    node.until(lambda: node.started)
    victim = node.pids()[0]
    os.kill(victim, signal.SIGSTOP)
    os.kill(victim, signal.SIGKILL)
    node.until(lambda: node.lost)
    assert node.pids() != [victim]


def test_jobs_that_kill_their_supervisors_at_once_are_no_evidence_against_the_node(no_leaks: LeakCheck) -> None:
    with Node() as node:
        for n in range(MOST_STILLBORN + 2):
            node.begin("kill -9 $PPID; sleep 600", shell=True)
            node.until(lambda n=n: len(node.lost) > n)
            node.post(m.ExecutorLost(0))
        assert node.sh("echo well").stdout == b"well\n"
    assert not no_leaks.settle()


RANK = """\
import sys, time
sys.path.insert(0, sys.argv[1])
from tests.support.node import Node
node = Node(supervisors=2)
for number in (0, 1):
    group = node.declare(*sys.argv[2:], to=number, shell=True)
    node.grant(0, to=number, shape=number)
    node.feed(group, to=number, shape=number)
node.until(lambda: len(node.started) == 2)
print('running', flush=True)
node.until(lambda: False, 600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_rank_leaves_nothing(no_leaks: LeakCheck, daemon: str, tmp_path: Path, number: int) -> None:
    root = str(Path(__file__).parents[2])
    command = f"{daemon} {tmp_path}/$$.pid deaf; trap '' TERM; while :; do sleep 0.1; done"
    with subprocess.Popen([PYTHON, "-c", RANK, root, command], stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None and rank.stdout.readline() == "running\n"
        assert len(no_leaks.processes()) >= 6
        rank.send_signal(number)
        rank.wait(10)
    deadline = time.monotonic() + 5
    while left := no_leaks.processes():
        assert time.monotonic() < deadline, f"still there: {', '.join(map(str, left))}"
        time.sleep(0.05)


# -- signals that a batch system sends to everybody ------------------------------------------------------------------


@pytest.mark.parametrize("command", ["exec sleep 600", "trap 'exit 143' TERM; while :; do sleep 0.05; done"])
@pytest.mark.parametrize("first", ["job", "supervisor"])
def test_what_died_of_a_signal_to_all_runs_again(node: Node, tmp_path: Path, command: str, first: str) -> None:
    """Slurm signals every process of a step, in any order: the job did not fail by itself."""
    node.begin(f"echo $$ > {tmp_path}/pid; {command}", shell=True)
    node.until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    job, (supervisor,) = int((tmp_path / "pid").read_text()), node.pids()
    for pid in (job, supervisor) if first == "job" else (supervisor, job):
        os.kill(pid, signal.SIGTERM)
    (done,) = node.wait()
    assert done.result is Result.LOST and "SIGTERM reached all processes" in done.reason


def test_what_died_of_a_signal_of_its_own_has_failed(node: Node) -> None:
    done = node.sh("kill -TERM $$")
    assert (done.result, done.returncode) == (Result.FAILED, -15)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node whose batch system takes its time with signals, as a busy one does."""
    monkeypatch.setattr(outside, "AROUND", 60.0)
    monkeypatch.setattr(outside, "WINDOW", 60.0)
    with Node() as made:
        yield made


def warned(node: Node) -> m.Warned:
    node.until(lambda: any(isinstance(one, m.Warned) for one in node.others))
    (found,) = (one for one in node.others if isinstance(one, m.Warned))
    return found


@pytest.mark.parametrize("command", ["exit 0", "exit 1", "sleep 0.2; exit 0"])
def test_what_ended_by_itself_just_before_a_signal_to_all_is_in_doubt(slow: Node, command: str) -> None:
    """The child of a script was signalled first, and the script came to its end before its own signal did."""
    slow.sh("kill -KILL $$")
    before, done = slow.sh("exit 0"), slow.sh(command)
    assert done.result in (Result.COMPLETED, Result.FAILED) and not done.reason
    slow.sh("true", cwd="/nowhere")
    os.kill(slow.pids()[0], signal.SIGUSR1)
    assert warned(slow) == m.Warned(signal.SIGUSR1, ((1, 1), (before.id, 1), (done.id, 1)))


def test_doubts_do_not_reach_far(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.sh("true")
    time.sleep(outside.AROUND + 0.1)
    late = node.sh("sleep 0.01; echo x")
    os.kill(node.pids()[0], signal.SIGTERM)
    assert set(warned(node).doubtful) <= {(late.id, 1)}


@pytest.mark.parametrize(("around", "result"), [(60.0, Result.LOST), (0.0, Result.COMPLETED)])
def test_what_ends_well_after_a_signal_to_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, around: float,
                                              result: Result) -> None:
    """At once it may have been cut short; later it has caught the signal, and come to its end all the same."""
    monkeypatch.setattr(outside, "AROUND", around)
    with Node() as node:
        node.begin(f"echo > {tmp_path}/up; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done", shell=True)
        node.until((tmp_path / "up").exists)
        os.kill(node.pids()[0], signal.SIGTERM)
        warned(node)
        (tmp_path / "go").touch()
        (done,) = node.wait()
    assert (done.result, done.returncode) == (result, 0)


def fed_after_a_signal(node: Node, path: Path, parts: int) -> JobGroup:
    """To be started after a signal: a job that makes a file there on a lease, and parts of so many parallel ones."""
    node.sh("true")
    group = node.declare("touch", str(path), count=1 + parts)
    os.kill(node.pids()[0], signal.SIGTERM)
    warned(node)
    node.grant()
    node.feed(group, 0, 1)
    for id in range(group.first_id + 1, group.stop_id):
        node.post(m.Part(id, 1, group.number, 1, 0, (1,), m.NodeShare(0, (0,)), "here"))
    return group


def test_after_a_signal_to_all_nothing_is_started(slow: Node, tmp_path: Path) -> None:
    group = fed_after_a_signal(slow, tmp_path / "started", parts=2)
    slow.post(m.Cancel((group.first_id + 1,), "not needed"))
    slow.until(lambda: any(isinstance(one, m.PartEnded) for one in slow.others))
    (part,) = (one for one in slow.others if isinstance(one, m.PartEnded))
    assert (part.id, part.reason) == (group.first_id + 1, "not needed")
    slow.post(m.Stop(5.0, 60.0))
    slow.until(lambda: slow.stopped)
    assert len(slow.ended) == 1 and not slow.started and not (tmp_path / "started").exists()


def test_after_a_signal_that_nobody_else_got_all_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(outside, "WINDOW", 0.3)
    with Node() as node:
        fed_after_a_signal(node, tmp_path / "started", parts=1)
        node.until(lambda: len(node.ended) == 2 and any(isinstance(one, m.PartEnded) for one in node.others))


def test_who_is_stopped_listens_for_its_own_signal(node: Node) -> None:
    """Rank 0 may have got its signal first."""
    done = node.sh("sleep 0.1; exit 1")
    node.post(m.Stop(5.0, 60.0))
    node.executors.heard.clear()
    node.post(m.Alive())
    node.until(lambda: node.executors.heard)
    assert not node.stopped
    os.kill(node.pids()[0], signal.SIGTERM)
    assert warned(node).number == signal.SIGTERM and done.result is Result.FAILED
    node.until(lambda: node.stopped)
