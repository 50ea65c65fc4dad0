"""Chaos on real processes: kill -9 and SIGSTOP at moments that a seed decides, until the run is complete.

:func:`play` runs one seed: the command, the faults, and ``run --resume`` as often as it takes. What the run must then
look like is the business of whoever calls it; :class:`Round` says what was done and what was seen.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpiflux.model.records import FLAG_NOT_STARTED
from mpiflux.model.states import Result
from mpiflux.store.reader import open_run
from tests.support import procs
from tests.support.mpi import MpiRun, clean_environment

ROOT = Path(__file__).parents[2]
ENDS_ALL = ("rank 0", "launcher", "everything")
"""Faults after which nothing goes on by itself."""
KINDS = ("job", "supervisor", "leaf rank", "interior rank", "pause", *ENDS_ALL)
RANKS = 4
FIRST, SECOND = 40, 20
FLOW = {"jobs": {
    "first": {"command": "echo {job.id} {job.attempt} >>marks; sleep {s}; echo out {i}", "shell": True, "retries": 50,
              "parameters": {"i": {"range": FIRST}, "s": [0.02 + 0.04 * (i * 7 % 8) for i in range(FIRST)]},
              "sampling": "zip"},
    "second": {"command": "echo {job.id} {job.attempt} >>marks; sleep 0.1; echo next {i}; exit $(({i} % 5 / 4))",
               "shell": True, "retries": 50, "retry_on": ["SIGKILL"],
               "parameters": {"i": {"range": SECOND}}, "after": "first"}}}
"""Every fifth job of ``second`` fails, as it would undisturbed."""
MOST_RUNS = 12
_LIMIT = 90.0
End = tuple[int, str, int | None, str]
"""(id, result, returncode, stdout)."""


@dataclass
class Fault:
    """One that was injected."""

    kind: str
    target: str = ""
    noticed: float | None = None
    """Seconds until it was acted upon: a rank was declared lost, a supervisor replaced, or everything had ended."""
    recovered: float | None = None
    """Seconds until the first of the jobs that it took along began again; where everything ended, from the next
    ``--resume`` on until a job began."""


@dataclass
class Round:
    """What became of one seed."""

    seed: int
    hierarchy: str
    faults: list[Fault] = field(default_factory=list)
    resumes: int = 0
    seconds: float = 0.0
    executions: int = 0
    ends: list[End] = field(default_factory=list)
    recorded_twice: int = 0
    """Jobs with two records that both end them."""
    same_attempt_twice: int = 0
    """(job, attempt) that were begun twice."""
    ran_again: int = 0
    """Jobs that were begun although their end had been committed."""
    left: list[str] = field(default_factory=list)
    """Processes that outlived the command."""
    said: str = ""
    """What the commands wrote to stderr."""


def undisturbed(place: Path) -> list[End]:
    """The ends of a run that nothing happens to, on one rank."""
    (place / "flow.yaml").write_text(json.dumps(FLOW))
    words = ["run", "flow.yaml", "--run-dir", "undisturbed", "--cores-per-node", "8"]
    with MpiRun([sys.executable, "-m", "mpiflux", *words], clean_environment({"PYTHONPATH": str(ROOT)}), place) as one:
        one.wait(_LIMIT)
    (place / "marks").unlink()
    return ends_of(place / "undisturbed")


def ends_of(directory: Path) -> list[End]:
    """Every job's end."""
    with open_run(directory) as reader:
        return [(job["id"], job["result"] or job["state"], job["returncode"], job["stdout"])
                for job in reader.jobs(with_output=True)]


def play(seed: int, place: Path, plan: Sequence[str] = ()) -> Round:
    """Run one seed in the directory ``place``, with the faults of ``plan``, or of the seed's own.

    Raises MpiTimeoutError when a run comes to no end.
    """
    rng = random.Random(seed)
    plan = list(plan) or [rng.choice(KINDS) for _ in range(rng.choice((1, 2, 3, 4)))]
    one = Round(seed, rng.choice(("2x2", "2x4") if "interior rank" in plan else ("4", "2x2", "2x4", "none")))
    name = f"r{seed}"
    (place / "marks").write_text("")
    (place / "flow.yaml").write_text(json.dumps(FLOW))
    began = time.monotonic()
    for attempt in range(MOST_RUNS):
        before, at = len(one.faults), time.time()
        words = ["run", "flow.yaml", "--run-dir", name, "--ranks", str(RANKS), "--cores-per-node", "8",
                 "--hierarchy", one.hierarchy, *(["--resume"] if attempt else [])]
        status = _run(one, rng, place, words, plan)
        ended = [fault for fault in one.faults[:before] if fault.kind in ENDS_ALL and fault.recovered is None]
        first = min((t for t, _ in _starts(place / name) if t > at), default=None)
        for fault in ended:
            fault.recovered = None if first is None else first - at
        if status == 2:
            raise RuntimeError(one.said)
        if status in (0, 1):
            break
        one.resumes += 1
    one.seconds = time.monotonic() - began
    one.ends = ends_of(place / name)
    _count(one, place, name)
    return one


def _run(one: Round, rng: random.Random, place: Path, words: list[str], plan: list[str]) -> int:
    """One command to its end, with as much of the plan as befalls it; its status."""
    environ = clean_environment({"PYTHONPATH": str(ROOT)})
    hit: list[tuple[Fault, float]] = []
    ended = _committed(place / words[3])
    before = Counter(_marks(place))
    with MpiRun([sys.executable, "-m", "mpiflux", *words], environ, place) as running:
        while plan:
            target = _lines(place) + rng.choice((1, 4, 10, 20))
            # a run in which nothing begins any more is hit all the same
            _wait(running, lambda target=target: _lines(place) >= target, 20.0)  # type: ignore[misc]
            if running.process.poll() is not None:
                break
            time.sleep(rng.choice((0.0, rng.random() * 0.3)))
            kind = plan.pop(0)
            fault = Fault(kind)
            if _inject(fault, rng, running, one.hierarchy):
                one.faults.append(fault)
                hit.append((fault, time.time()))
            if kind in ENDS_ALL:
                break
        done = running.wait(_LIMIT)
        over = time.time()
        end = time.monotonic() + 15
        while (left := [p for p in running.members() if not p.zombie]) and time.monotonic() < end:
            time.sleep(0.02)
        gone = time.time()
        one.left += [str(p) for p in left]
    one.said += done.stderr
    _notice(hit, place / words[3], max(over, gone))
    again = Counter(_marks(place)) - before
    one.ran_again += len(ended & {job for job, _ in again})
    return done.returncode


def _wait(running: MpiRun, true: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true before the run ended and in so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        if running.process.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _lines(place: Path) -> int:
    """How many attempts have begun."""
    return (place / "marks").read_bytes().count(b"\n")


def _marks(place: Path) -> list[tuple[int, int]]:
    """(job, attempt) of all that has begun."""
    try:
        lines = (place / "marks").read_text().splitlines()
    except OSError:
        return []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines if len(line.split()) == 2]


def _committed(directory: Path) -> set[int]:
    """Jobs whose end is in the journal."""
    if not (directory / "run.db").exists():
        return set()
    with open_run(directory) as reader:
        return {job["id"] for job in reader.jobs() if job["result"]}


def _starts(directory: Path) -> list[tuple[float, int]]:
    """(when, which attempt) of each attempt that began and has ended."""
    if not (directory / "run.db").exists():
        return []
    with open_run(directory) as reader:
        records = reader.records
        began = records[(records["flags"] & FLAG_NOT_STARTED) == 0]
        return list(zip(began["t_start"].tolist(), began["attempt"].tolist(), strict=True))


def _notice(hit: list[tuple[Fault, float]], directory: Path, gone: float) -> None:
    lost, again = {}, []
    if (directory / "run.db").exists():
        with open_run(directory) as reader:
            lost = {f"rank {one['rank']}": one["t"] for one in reader.meta.get("lost") or ()}
        again = [t for t, attempt in _starts(directory) if attempt > 1]
    for fault, when in hit:
        if fault.kind not in ("pause", *ENDS_ALL):
            fault.recovered = min((t - when for t in again if t > when), default=None)
        if fault.kind in ENDS_ALL:
            fault.noticed = gone - when
        elif fault.kind != "pause" and fault.target in lost:
            fault.noticed = lost[fault.target] - when


def _count(one: Round, place: Path, name: str) -> None:
    marks = _marks(place)
    one.executions = len(marks)
    one.same_attempt_twice = sum(n > 1 for n in Counter(marks).values())
    with open_run(place / name) as reader:
        records = reader.records
        final = records[records["result"] == Result.COMPLETED]
        one.recorded_twice = sum(n > 1 for n in Counter(final["id"].tolist()).values())


# -- who is who ----------------------------------------------------------------------------------------------------


def ranks_of(launcher: int, table: dict[int, procs.Process]) -> dict[int, procs.Process]:
    """Rank processes of ``mpiflux run --ranks`` by their number."""
    found = {}
    for one in table.values():
        if one.parent != launcher or one.zombie:
            continue
        try:
            with open(f"/proc/{one.pid}/environ", "rb") as file:
                words = dict(item.partition(b"=")[::2] for item in file.read().split(b"\0"))
        except OSError:
            continue
        if b"MPIFLUX_LAUNCH_RANK" in words:
            found[int(words[b"MPIFLUX_LAUNCH_RANK"])] = one
    return found


def _below(parents: set[int], table: dict[int, procs.Process]) -> list[procs.Process]:
    return [one for one in table.values() if one.parent in parents and not one.zombie]


def _targets(kind: str, running: MpiRun, hierarchy: str) -> list[tuple[str, procs.Process]]:
    table = procs.everyone()
    ranks = ranks_of(running.process.pid, table)
    if kind == "launcher":
        return [("launcher", table[running.process.pid])] if running.process.pid in table else []
    if kind == "rank 0":
        return [("rank 0", ranks[0])] if 0 in ranks else []
    if kind == "pause":
        return [(f"rank {number}", one) for number, one in ranks.items()]
    inner = {"2x2": (2,), "2x4": (2,)}.get(hierarchy, ())
    if kind == "interior rank":
        return [(f"rank {number}", ranks[number]) for number in inner if number in ranks]
    if kind == "leaf rank":
        return [(f"rank {number}", one) for number, one in ranks.items() if number and number not in inner]
    zygotes = {one.pid for one in _below({one.pid for one in ranks.values()}, table) if one.comm == "mpiflux-zygote"}
    supervisors = _below(zygotes, table)
    if kind == "supervisor":
        return [("", one) for one in supervisors]
    return [("", one) for one in _below({one.pid for one in supervisors}, table)]


def _inject(fault: Fault, rng: random.Random, running: MpiRun, hierarchy: str) -> bool:
    """Do it; False when there is nobody to do it to."""
    if fault.kind == "everything":
        for one in sorted(running.members(), key=lambda one: one.pid):
            _signal(one, signal.SIGKILL)
        return True
    targets = sorted(_targets(fault.kind, running, hierarchy), key=lambda pair: pair[1].pid)
    if not targets:
        return False
    fault.target, one = rng.choice(targets)
    if fault.kind == "supervisor":
        return _replaced(fault, one)
    if fault.kind != "pause":
        return _signal(one, signal.SIGKILL)
    if not _signal(one, signal.SIGSTOP):
        return False
    time.sleep(1.0)
    return _signal(one, signal.SIGCONT)


def _replaced(fault: Fault, one: procs.Process) -> bool:
    """Kill a supervisor, and wait for another to take its place."""
    before = {other.pid for other in _below({one.parent}, procs.everyone())}
    began = time.monotonic()
    if not _signal(one, signal.SIGKILL):
        return False
    while time.monotonic() < began + 5.0:
        table = procs.everyone()
        if {other.pid for other in _below({one.parent}, table)} - before:
            fault.noticed = time.monotonic() - began
            break
        if one.parent not in table:
            break
        time.sleep(0.002)
    return True


def _signal(one: procs.Process, number: int) -> bool:
    now = procs.stat(one.pid)
    if now is None or now.born != one.born:
        return False
    try:
        os.kill(one.pid, number)
    except ProcessLookupError:
        return False
    return True
