"""``job show``, ``eventlog``, ``wait``: one job, closely."""

from __future__ import annotations

import json
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpiflux.cli.console import colourful, duration, paint, printable, say
from mpiflux.cli.parser import Parser, seconds
from mpiflux.cli.rundir import Trouble, add_directory, answered, reading, swap

if TYPE_CHECKING:
    from mpiflux.store.reader import RunReader

POLL = 0.2
"""Seconds between two looks at a live run; more where a look takes long."""
TAIL = 10
"""Lines of each stream that ``job show`` prints."""
_ID = "the job: 12, sim.3 or 'sim[3]'"


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    action = name.split()[1]
    parser.examples(*{
        "show": ("mpiflux job show 12 runs/first", "mpiflux job show 'sim[3]' runs/first --json"),
        "eventlog": ("mpiflux job eventlog 12 runs/first", "mpiflux job eventlog sim.3 --run-dir runs/first --json"),
        "wait": ("mpiflux job wait 12 runs/first", "mpiflux job wait sim runs/first --time-limit 10m"),
    }[action])
    parser.add_argument("id", metavar="ID", help=_ID + ("; a name waits for all of it" if action == "wait" else ""))
    add_directory(parser)
    if action in ("show", "eventlog"):
        parser.add_argument("--json", action="store_true", help="as JSON")
    if action == "show":
        parser.add_argument("--with-output", action="store_true", help="with --json: also stdout and stderr, whole")
    if action == "wait":
        parser.add_argument("-t", "--time-limit", metavar="DURATION", type=seconds, default=0.0,
                            help="give up after this long, with exit status 124")
    function = {"show": show, "eventlog": eventlog, "wait": wait}[action]

    def handler(args: Namespace) -> int:
        swap(args, "id")
        return answered(args, function)

    return handler


# -- show --------------------------------------------------------------------------------------------------------


def show(args: Namespace) -> None:
    with reading(args) as reader:
        id = reader.one(args.id)
        if args.json:
            extra = {"jobspec": reader.jobspec(id), "R": reader.R(id),
                     "eventlog": [event._asdict() for event in reader.eventlog(id)]}
            say(json.dumps({**reader.job(id, with_output=args.with_output), **extra}, indent=2))
            return
        for text in described(reader, id):
            say(text)


def described(reader: RunReader, id: int) -> list[str]:
    """Everything about a job for a person to read."""
    from mpiflux.cli.jobs import exit_text, idsets, parameters, status
    from mpiflux.cli.summary import host_list
    from mpiflux.model.resources import size

    job, spec = reader.job(id), reader.jobspec(id)
    bold = colourful(sys.stdout)
    state = status(job)
    code = exit_text(job)
    head = f"{job['name']}[{job['index']}]  job {id}  {state}"
    if code and state != "COMPLETED":
        head += f"  {code}" if code.startswith("SIG") else f"  exit {code}"
    where = f"{host_list(job['nodes'])}, cores {idsets(job['cores']) or 'none'}" if job["nodes"] else ""
    if job["gpus"]:
        where += f", GPUs {idsets(job['gpus'])}"
    rows = [("reason", printable(job["reason"])), ("parameters", printable(parameters(job["params"]))),
            ("command", printable(command(spec))), ("directory", printable(spec["cwd"])), ("where", where),
            ("attempts", str(job["attempts"]) if job["attempts"] > 1 else ""),
            ("times", times(job)), ("usage", "")]
    if job["utime"] is not None and job["t_start"] is not None:
        rows[-1] = ("usage", f"user {duration(job['utime'])}, system {duration(job['stime'])}, "
                             f"memory {size(job['maxrss'])}")
    lines = [paint(head, "bold", bold), *(f"  {key:<12}{text}" for key, text in rows if text), ""]
    events = reader.eventlog(id)
    lines.append(paint("events", "bold", bold))
    lines += [f"  {event.timestamp - events[0].timestamp:12.6f}  {event.name:<10}{context(event.context)}".rstrip()
              for event in events]
    cut = next((event.context.get("truncated", ()) for event in reversed(events) if event.name == "output"), ())
    for stream, name in ((1, "stdout"), (2, "stderr")):
        data = reader.output(id, stream)
        if data or name in cut:
            lines += ["", *tail(name, data, bold, name in cut)]
    return lines


def command(spec: dict[str, Any]) -> str:
    if spec["script"] is not None:
        first = spec["script"].strip().splitlines()
        return f"script of {len(first)} lines: {first[0] if first else ''}"
    if spec["shell"]:
        return str(spec["command"][-1])
    return shlex.join(spec["command"])


def times(job: dict[str, Any]) -> str:
    begin, end = job["t_start"], job["t_finish"]
    text = f"submitted {clock(job['t_submit'])}"
    if begin is not None:
        text += f", waited {duration(begin - job['t_submit'])}"
        if end is not None:
            text += f", ran {duration(end - begin)}"
    return text


def clock(t: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(t))


def tail(name: str, data: bytes, bold: bool, cut: bool) -> list[str]:
    lines = data.decode("utf-8", "replace").splitlines()
    head = f"{name}, {len(data):,} bytes" + (", cut off by output_limit" if cut else "")
    if len(lines) > TAIL:
        head += f", the last {TAIL} of {len(lines):,} lines"
    return [paint(head, "bold", bold), *("  " + printable(line) for line in lines[-TAIL:])]


def context(values: dict[str, Any]) -> str:
    """``key=value`` pairs; a value that is no plain word is JSON."""
    def plain(value: object) -> str:
        if isinstance(value, str) and value.isprintable() and value and not any(c in value for c in ' "='):
            return value
        return json.dumps(value)

    return " ".join(f"{key}={plain(value)}" for key, value in values.items())


# -- eventlog ----------------------------------------------------------------------------------------------------


def eventlog(args: Namespace) -> None:
    with reading(args) as reader:
        events = reader.eventlog(reader.one(args.id))
    if args.json:
        say("[" + ",\n ".join(json.dumps(event._asdict()) for event in events) + "]")
        return
    for event in events:
        say(f"{event.timestamp:.6f} {event.name} {context(event.context)}".rstrip())


# -- following ---------------------------------------------------------------------------------------------------


def alive(reader: RunReader) -> bool:
    """Whether the instance still writes here."""
    if reader.state == "running":
        return True
    reader.refresh()
    return reader.state == "running"


def exit_status(job: dict[str, Any]) -> int:
    """A shell's exit status for an ended job."""
    code = job["returncode"] or 0
    if job["result"] == "COMPLETED":
        return 0
    return 128 - code if code < 0 else code or 1


def pause(began: float) -> None:
    """Wait for the next look; one that took long is not repeated at once."""
    time.sleep(max(POLL, 4 * (time.monotonic() - began)))


def unfinished(id: int) -> Trouble:
    return Trouble(f"job {id} has not ended and its instance has: go on with `mpiflux run --resume`", 1)


def wait(args: Namespace) -> int:
    """Wait for jobs; the exit status is the highest of theirs."""
    with reading(args) as reader:
        ids = reader.resolve(args.id)
        worst = 0
        deadline = time.monotonic() + args.time_limit if args.time_limit else float("inf")
        for id in ids:
            while True:
                began = time.monotonic()
                live = alive(reader)
                job = reader.job(id)
                if job["state"] == "INACTIVE":
                    break
                if not live:
                    raise unfinished(id)
                if began > deadline:
                    raise Trouble(f"job {id} has not ended within {duration(args.time_limit)}", 124)
                pause(began)
            worst = max(worst, exit_status(job))
        return worst


