"""``top``: a run as it goes on, looked at again and again."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mpiflux.cli.console import duration, plural, printable, say, shorten, write
from mpiflux.cli.parser import Parser, seconds
from mpiflux.cli.rundir import add_directory, answered, reading

if TYPE_CHECKING:
    from mpiflux.store.reader import RunReader

_HOME = "\x1b[H\x1b[J"
_SHARE = 10
"""Looking may take one part in so many of the time."""


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples("mpiflux top runs/first", "mpiflux top runs/first --once", "mpiflux top runs/first --lines 40")
    add_directory(parser)
    add = parser.add_argument
    add("--once", action="store_true", help="one look, as when stdout is no terminal")
    add("--interval", metavar="SECONDS", type=seconds, default=1.0, help="between two looks (default 1)")
    add("-n", "--lines", metavar="N", type=int, default=20, help="running jobs shown (default 20)")
    return lambda args: answered(args, top)


def top(args: Namespace) -> int:
    once = args.once or not sys.stdout.isatty()
    before: tuple[float, int] | None = None
    try:
        while True:
            began = time.monotonic()
            with reading(args) as reader:
                ended = reader.table.counts().inactive
                rate = (ended - before[1]) / (began - before[0]) if before is not None else None
                text = "\n".join(screen(reader, time.time(), args.lines, rate))
                over = reader.state != "running"
            before = began, ended
            if once:
                say(text)
                return 0
            write(f"{_HOME}{text}\n")
            if over:
                return 0
            took = time.monotonic() - began
            time.sleep(max(args.interval, took * _SHARE))
    except KeyboardInterrupt:
        return 0


def screen(reader: RunReader, now: float, lines: int, rate: float | None) -> Iterator[str]:
    """The lines of one look; ``rate`` is in jobs a second since the last one."""
    meta, counts = reader.meta, reader.table.counts()
    begin = float(meta.get("t_start", now))
    end = now if reader.state == "running" else float(meta.get("t_end", now))
    yield (f"{meta.get('workflow', '')}  {reader.state} for {duration(end - begin)}  "
           f"{plural(len(meta.get('nodes', ())), 'node')}, {plural(meta.get('cores', 0), 'core')}, "
           f"{plural(meta.get('gpus', 0), 'GPU')}")
    words = [("completed", counts.completed), ("failed", counts.failed), ("timed out", counts.timeout),
             ("canceled", counts.canceled), ("running", counts.run), ("queued", counts.sched),
             ("waiting for others", counts.depend)]
    speed = f"  {rate:,.1f} jobs/s" if rate is not None else ""
    yield f"{plural(counts.total, 'job')}: " + ", ".join(f"{n:,} {word}" for word, n in words if n) + speed
    running = sorted(reader.running.values(), key=lambda record: record.t_start)
    if running and lines > 0:
        yield ""
        yield f"{'JOB':>9}  {'RUNS':>8}  {'NAME':<24}  WHERE"
    for record in running[:max(lines, 0)]:
        job = reader.job(record.id)
        where = ", ".join(job["nodes"]) if len(job["nodes"]) < 4 else f"{len(job['nodes'])} nodes"
        name = shorten(printable(f"{job['name']}[{job['index']}]"), 24)
        cores = job["cores"] if isinstance(job["cores"], str) else ""
        yield f"{record.id:>9}  {duration(now - record.t_start):>8}  {name:<24}  {where} {cores}".rstrip()
    if len(running) > lines > 0:
        yield f"{'':>9}  and {len(running) - lines:,} more"
