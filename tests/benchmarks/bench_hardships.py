"""What a run makes of trouble around it: a full disk, few files, few processes, a clock set back, a rank that is
stopped for 30 s, a host that is cut off. Real processes; how often, how soon it was noticed, how soon it was over.

    python tests/benchmarks/bench_hardships.py [ROUNDS] [KIND,…]

"Running again": the first attempt that begins after the trouble is over, or after what was lost is known to be. Exits
with 1 when a job is lost or has two results. Root only, for file systems, users and hosts of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from _common import ROOT, machine

from mpiflux.model.states import Result
from mpiflux.store.reader import open_run
from tests.support import procs
from tests.support.chaos import ranks_of
from tests.support.hosts import Hosts, unavailable
from tests.support.mpi import MpiRun, clean_environment
from tests.support.runs import Place

JOBS = 60
LIMIT = 150.0
CLOCK = """import os, time
if os.path.exists("clock") or "CLOCK" in os.environ:
    real = time.time
    time.time = lambda: real() - (3600.0 if os.path.exists(os.environ["CLOCK"]) else 0.0)
"""
STRANGER = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps",
            "+dac_read_search,+dac_override", "--ambient-caps", "+dac_read_search,+dac_override"]
"""A user whose processes are counted, as root's are not."""


@dataclass
class Seen:
    """``noticed`` and ``again`` in seconds; None: there was nothing to notice, or nothing lost."""

    noticed: float | None = None
    again: float | None = None
    status: int = 0
    wrong: str = ""


class Trial:
    """One run in a directory of its own."""

    def __init__(self, path: Path, seconds: float = 0.3) -> None:
        self.path = path
        flow = {"jobs": {"a": {"command": f"echo {{job.id}} >>marks; sleep {seconds}; head -c 20000 /dev/urandom",
                               "shell": True, "parameters": {"i": {"range": JOBS}}}}}
        (path / "flow.json").write_text(json.dumps(flow))
        (path / "marks").touch()

    def argv(self, *options: str, run_dir: str = "run") -> list[str]:
        return [sys.executable, "-m", "mpiflux", "run", "flow.json", "--run-dir", run_dir, "--cores-per-node", "8",
                "--progress", "plain", *options]

    def begun(self) -> int:
        return (self.path / "marks").read_bytes().count(b"\n")

    def check(self, seen: Seen, run_dir: str = "run") -> Seen:
        with open_run(self.path / run_dir) as reader:
            ends = Counter(job["result"] for job in reader.jobs())
            records = reader.records
            completed = Counter(records["id"][records["result"] == Result.COMPLETED].tolist())
            twice = [n for n in completed.values() if n > 1]
        if ends != {"COMPLETED": JOBS} or twice:
            seen.wrong = f"{dict(ends)}, {len(twice)} with two results"
        return seen


def until(true: Callable[[], bool], what: str) -> float:
    """Seconds until it came true."""
    began = time.monotonic()
    while not true():
        if time.monotonic() > began + LIMIT:
            raise TimeoutError(what)
        time.sleep(0.01)
    return time.monotonic() - began


@contextmanager
def running(trial: Trial, argv: list[str], **environ: str) -> Iterator[MpiRun]:
    with MpiRun(argv, clean_environment({"PYTHONPATH": str(ROOT), **environ}), trial.path) as one:
        until(lambda: trial.begun() >= 10 or one.process.poll() is not None, "jobs run")
        yield one


def full_disk(trial: Trial) -> Seen:
    """A small file system in a mount namespace of the run's own; what is outside reaches it through /proc."""
    (trial.path / "small").mkdir()
    argv = trial.argv("--ranks", "2", run_dir="small/run")
    script = 'mount -t tmpfs -o size=24m none small; "$@"; s=$?; cp -r small/run run; exit $s'
    with running(trial, ["unshare", "--mount", "sh", "-c", script, "sh", *argv]) as one:
        inside = Path(f"/proc/{one.process.pid}/root{trial.path}/small")
        ballast = os.open(inside / "ballast", os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(ballast, bytes(4096))
        except OSError:
            os.close(ballast)
        began = time.monotonic()
        one.wait_for("No more jobs are started", LIMIT)
        noticed = time.monotonic() - began
        time.sleep(2.0)
        before = trial.begun()
        os.unlink(inside / "ballast")
        again = until(lambda: trial.begun() > before, "jobs begin again")
        return trial.check(Seen(noticed, again, one.wait(LIMIT).returncode))


def limited(trial: Trial, limit: str, before: list[str]) -> Seen:
    began = time.monotonic()
    with MpiRun([*before, "bash", "-c", f'ulimit {limit}; exec "$@"', "sh", *trial.argv()],
                clean_environment({"PYTHONPATH": str(ROOT)}), trial.path) as one:
        done = one.wait(LIMIT)
    seen = Seen(None, None, done.returncode)
    if done.returncode == 3:
        seen.noticed = time.monotonic() - began
        if f"ulimit {limit[:2]}" not in done.stderr.splitlines()[-1] or "Traceback" in done.stderr:
            seen.wrong = done.stderr[-300:]
        return seen
    return trial.check(seen)


def clock_back(trial: Trial) -> Seen:
    """By an hour, for every process of Python that is there or comes: rank, zygote, supervisors."""
    (trial.path / "sitecustomize.py").write_text(CLOCK)
    argv = trial.argv("--ranks", "2")
    with running(trial, argv, PYTHONPATH=f"{trial.path}:{ROOT}", CLOCK=str(trial.path / "back")) as one:
        (trial.path / "back").touch()
        before = trial.begun()
        again = until(lambda: trial.begun() > before, "jobs begin")
        seen = trial.check(Seen(None, again, one.wait(LIMIT).returncode))
    with open_run(trial.path / "run") as reader:
        records = reader.records
        took = records["t_finish"] - records["t_start"]
    if not 0.2 < took.min() <= took.max() < 60:
        seen.wrong = f"jobs took {took.min()} to {took.max()} s"
    return seen


def stopped_rank(trial: Trial) -> Seen:
    """With the default time-out: nothing is lost."""
    with running(trial, trial.argv("--ranks", "4", "--hierarchy", "4")) as one:
        ranks = ranks_of(one.process.pid, procs.everyone())
        os.kill(ranks[2].pid, signal.SIGSTOP)
        time.sleep(30)
        before = trial.begun()
        os.kill(ranks[2].pid, signal.SIGCONT)
        again = until(lambda: trial.begun() > before or trial.begun() == JOBS, "jobs begin")
        seen = trial.check(Seen(None, again, one.wait(LIMIT).returncode))
    if trial.begun() != JOBS:
        seen.wrong = f"{trial.begun()} attempts"
    return seen


def cut_host(trial: Trial) -> Seen:
    """By our own launcher on four hosts, with a time-out of 4 s."""
    rig = Hosts(4)
    try:
        place = Place(trial.path)
        with rig.start(place, [*trial.argv("--hosts", "h[0-3]", "--rsh", rig.enter, "--hierarchy", "node",
                                           "--rank-timeout", "4s"), "--cores-per-node", "2"]) as one:
            until(lambda: trial.begun() >= 12, "jobs run")
            rig.cut("h2")
            began = time.monotonic()
            one.wait_for("rank 2 on h2 is lost", LIMIT)
            noticed, before = time.monotonic() - began, trial.begun()
            again = until(lambda: trial.begun() > before or trial.begun() >= JOBS, "jobs begin again")
            rig.mend("h2")
            return trial.check(Seen(noticed, again, one.wait(LIMIT).returncode))
    finally:
        rig.close()


KINDS: dict[str, tuple[Callable[[Trial], Seen], float]] = {
    "full disk": (full_disk, 0.3),
    "ulimit -n 64": (lambda trial: limited(trial, "-n 64", []), 0.05),
    "ulimit -n 12": (lambda trial: limited(trial, "-n 12", []), 0.05),
    "ulimit -u 40": (lambda trial: limited(trial, "-u 40", STRANGER), 0.05),
    "ulimit -u 2": (lambda trial: limited(trial, "-u 2", STRANGER), 0.05),
    "clock set back": (clock_back, 0.3),
    "rank stopped 30 s": (stopped_rank, 2.0),
    "host cut off": (cut_host, 1.5)}


def shown(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s{max(times):>8.2f} s" if times else "-"


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    kinds = sys.argv[2].split(",") if len(sys.argv) > 2 else list(KINDS)
    if reason := unavailable():
        print(f"not tried, for want of hosts: {reason}", file=sys.stderr)
        return 0
    print(machine())
    print(f"{'trouble':<20}{'times':>6}{'noticed, median, longest':>28}{'running again':>28}  status")
    wrong = []
    for kind in kinds:
        play, seconds = KINDS[kind]
        found = []
        for _ in range(rounds):
            place = Path(tempfile.mkdtemp(prefix="hardships-"))
            place.chmod(0o777)
            try:
                found.append(play(Trial(place, seconds)))
            except (TimeoutError, subprocess.SubprocessError) as error:
                found.append(Seen(wrong=str(error)))
            finally:
                shutil.rmtree(place, ignore_errors=True)
        wrong += [f"{kind}: {one.wrong}" for one in found if one.wrong]
        times = [[t for one in found if (t := getattr(one, name)) is not None] for name in ("noticed", "again")]
        statuses = ", ".join(map(str, sorted({one.status for one in found})))
        print(f"{kind:<20}{len(found):>6}{shown(times[0]):>28}{shown(times[1]):>28}  {statuses}", flush=True)
    print("\n".join(wrong) or "every job of every run that went on completed once")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
