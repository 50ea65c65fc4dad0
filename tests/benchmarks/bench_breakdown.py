"""Where the runtime's own CPU goes, process by process and thread by thread, in microseconds a job.

A run of ``/bin/true`` is watched: the kernel's nanoseconds of each thread (``/proc/PID/task/TID/schedstat``) are read
twice while jobs run, and divided by the number of jobs that ended between (from their records). The bare C loop, whose
own CPU is what starting and waiting costs without any runtime, runs before it. Where ``perf`` is installed, a second
run says what the supervisors' part consists of: samples of one supervisor by system call, and by library outside of
them.

usage: bench_breakdown.py [JOBS] [RANKS] [HIERARCHY]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict

from _common import EXAMPLES, Scratch, launcher, machine, spawn_loop, table

Sample = dict[tuple[int, int], int]


def sample(pids: list[int]) -> Sample:
    """Nanoseconds on a CPU by (pid, tid), of those that are there: a rank without cores soon ends its zygote."""
    found: Sample = {}
    for pid in pids:
        try:
            for tid in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{tid}/schedstat") as file:
                    found[pid, int(tid)] = int(file.read().split()[0])
        except OSError:
            continue
    return found


def children(pid: int) -> list[int]:
    found = []
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/children") as file:
            found += [int(child) for child in file.read().split()]
    return found


def family(root: int, command: str) -> dict[int, str]:
    """Our processes below ``root``, by what they are."""
    kinds: dict[int, str] = {}
    ranks = 0

    def visit(pid: int, above: str) -> None:
        nonlocal ranks
        try:
            with open(f"/proc/{pid}/comm") as file:
                name = file.read().strip()
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                ours = command.encode() in file.read()
            below = children(pid)
        except OSError:
            return
        if name == "mpiflux-zygote":
            if above not in ("rank", "zygote"):
                return  # a job that has not become its program yet
            kinds[pid] = "zygote" if above == "rank" else "supervisors"
        elif ours and name.startswith("python") and above != "rank":
            kinds[pid] = f"rank {ranks}" if ranks == 0 else "other ranks"
            ranks += 1
        elif above:
            return
        is_rank = kinds.get(pid, "").endswith(("rank 0", "ranks"))
        for child in sorted(below):
            visit(child, "rank" if is_rank else kinds.get(pid, ""))

    visit(root, "")
    return kinds


def settled(process: subprocess.Popen[bytes], run_dir: str) -> dict[int, str]:
    """Our processes, a second after there are supervisors."""
    while process.poll() is None and "supervisors" not in family(process.pid, run_dir).values():
        time.sleep(0.1)
    time.sleep(1.0)
    return family(process.pid, run_dir)


def sampled(argv: list[str], run_dir: str, scratch: str) -> Counter[str]:
    """Samples of one supervisor by what it did."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kinds = settled(process, run_dir)
    pid = next(pid for pid, kind in kinds.items() if kind == "supervisors")
    data = os.path.join(scratch, "perf.data")
    subprocess.run(["perf", "record", "-q", "-F", "4000", "-g", "-i", "-t", str(pid), "-o", data, "--", "sleep", "3"],
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # a signal ends it if the run is short
    process.wait(timeout=600)
    # what perf wrote when it was cut off it may not be able to read: then there is no second table
    text = subprocess.run(["perf", "script", "-i", data, "-F", "ip,sym,dso"], check=False, capture_output=True,
                          text=True, errors="replace").stdout
    return Counter(what(stack) for stack in text.split("\n\n") if stack.strip())


def what(stack: str) -> str:
    call = re.search(r"__(?:do|se|x64)_sys_(\w+)", stack)
    if call:
        return f"system call {call[1]}"
    top = stack.strip().splitlines()[0]
    if "[kernel" in top or top.endswith("([unknown])"):
        return "entering and leaving the kernel, interrupts, page faults"
    library = top.rpartition("(")[2].rpartition("/")[2]
    if library.startswith("_quick"):
        return "the C part"
    return "libc" if library.startswith(("libc.", "[vdso")) else "Python"


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    ranks = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    hierarchy = sys.argv[3] if len(sys.argv) > 3 else "none"
    print(f"{machine()}\n{jobs:,} x /bin/true on {ranks} ranks, hierarchy {hierarchy}")
    with Scratch() as scratch:
        width = str(len(os.sched_getaffinity(0)))
        loop = subprocess.run([spawn_loop(scratch), str(min(jobs, 5000)), width, "/bin/true"], check=True,
                              capture_output=True, text=True).stdout.split()
        run_dir = os.path.join(scratch, "run")
        argv = [*launcher(ranks), sys.executable, "-m", "mpiflux", "run", str(EXAMPLES / "stress.yaml"), "--run-dir",
                run_dir, "--progress", "none", "--set", f"n={jobs}", "--hierarchy", hierarchy]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=errors)
            kinds = settled(process, run_dir)
            begin, before = time.time(), sample(list(kinds))
            end, after = begin, before
            while process.poll() is None:
                time.sleep(0.1)
                now = sample(list(kinds))
                if not any(kinds[pid] == "supervisors" for pid, _ in now):
                    break
                after, end = {**after, **now}, time.time()
            process.wait(timeout=600)
        supervisors = report(run_dir, kinds, before, after, begin, end, loop)
        if shutil.which("perf") and os.geteuid() == 0:
            argv[argv.index(run_dir)] = again = f"{run_dir}-again"
            found = sampled(argv, again, scratch)
            total = sum(found.values()) or 1
            small = [name for name, n in found.items() if n < 0.01 * total]
            found["system calls of less than 1 % each"] = sum(found.pop(name) for name in small)
            print(table([(name, f"{supervisors * n / total:.1f}") for name, n in found.most_common()],
                        ("of the supervisors'", "us/job")))


def report(run_dir: str, kinds: dict[int, str], before: Sample, after: Sample, begin: float, end: float,
           loop: list[str]) -> float:
    """Print the table; the supervisors' part."""
    from mpiflux.store.reader import open_run

    with open_run(run_dir) as reader:
        records = reader.records
        ended = (records["t_finish"] > begin) & (records["t_finish"] <= end)
        count = int(ended.sum())
        if count < 100:
            raise SystemExit("the run was over too soon to be watched; ask for more jobs")
        own = float((records["utime"][ended].astype("f8") + records["stime"][ended]).sum())
    spent: dict[str, float] = defaultdict(float)
    for (pid, tid), ns in after.items():
        kind = kinds[pid] if pid == tid else f"{kinds[pid]}, its other threads"
        spent[kind] += (ns - before.get((pid, tid), 0)) / 1e3 / count
    rows: list[tuple[object, ...]] = [(kind, f"{us:.1f}") for kind, us in sorted(spent.items(), key=lambda e: -e[1])]
    rows.append(("all of it", f"{sum(spent.values()):.1f}"))
    rows.append(("the C loop's own", loop[0]))
    rows.append(("the jobs themselves; the C loop's", f"{own / count * 1e6:.0f}; {loop[1]}"))
    print(f"{count:,} jobs in {end - begin:.1f} s")
    print(table(rows, ("process", "us/job")))
    return spent["supervisors"]


if __name__ == "__main__":
    main()
