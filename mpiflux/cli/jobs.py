"""``jobs``: the table of a run's jobs."""

from __future__ import annotations

import itertools
import json
import shutil
import string
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mpiflux.cli.console import (
    colourful,
    duration,
    paint,
    plural,
    printable,
    say,
    say_all,
    shorten,
    signal_name,
    tell,
)
from mpiflux.cli.parser import Parser, natural, suggestion
from mpiflux.cli.rundir import FILTER_HELP, Trouble, add_directory, answered, reading, select
from mpiflux.cli.summary import host_list

if TYPE_CHECKING:
    from mpiflux.store.reader import RunReader

FIELDS = ("id", "name", "index", "params", "state", "result", "returncode", "attempts", "tasks", "nodes", "cores",
          "gpus", "t_submit", "t_start", "t_finish", "utime", "stime", "maxrss", "reason", "truncated",
          "stdout", "stderr")
OF_FLUX = {"id.f58": "id", "id.dec": "id", "ntasks": "tasks", "nodelist": "nodes", "status_abbrev": "status",
           "t_run": "t_start", "t_cleanup": "t_finish", "t_inactive": "t_finish"}
"""What fields of Flux's formats are called here."""
DERIVED = ("job", "status", "exit", "runtime", "waited", "instance")
"""What ``--format`` knows besides the record: ``sim[3]``, state or result, exit status or signal, seconds; with
``-R`` the path of jobs to the instance that it is of."""
BLOCK = 200
"""Lines written at a time where there may be millions."""
SHOWN = 1000
"""Rows of a table unless asked otherwise."""
_COLOURS = {"COMPLETED": "green", "FAILED": "red", "TIMEOUT": "red", "CANCELED": "yellow", "RUN": "cyan"}
_RUN, _INACTIVE, _COMPLETED = 3, 5, 1


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples(
        "mpiflux jobs runs/first", "mpiflux jobs runs/first --filter failed,timeout",
        "mpiflux jobs runs/first --filter 'sim[0-99],completed' --json --with-output",
        "mpiflux jobs runs/first -a --format '{id} {name} {params[x]} {runtime:.3f}'")
    add_directory(parser)
    add = parser.add_argument
    add("-a", "--all", action="store_true",
        help="all jobs; without it a run that goes on shows those that have not ended and those that failed")
    add("-R", "--recursive", action="store_true", help="also the jobs of instances inside its jobs")
    add("-f", "--filter", metavar="LIST", help=FILTER_HELP)
    add("-n", "--count", metavar="N", type=natural,
        help=f"at most N jobs, 0 for all (default: {SHOWN} in a table, else all)")
    add("-o", "--format", metavar="TEXT",
        help="a line for each job, with {} fields as in Python: " + " ".join((*FIELDS[:-2], *DERIVED)))
    add("--json", action="store_true", help="a JSON list of job records")
    add("--explain", metavar="ID", help="say why this job of a live run has not started: 12, sim.3")
    add("--with-output", action="store_true", help="with --json or --format: also the fields stdout and stderr")
    return lambda args: answered(args, jobs)


def jobs(args: Namespace) -> None:
    if args.explain is not None:
        explain(args)
        return
    if args.json and args.format is not None:
        raise Trouble("--json and --format exclude each other")
    with reading(args) as reader:
        if args.recursive:
            recursively(reader, args)
            return
        blocks = chosen(reader, args)
        if args.json:
            blocks = [sorted(itertools.chain.from_iterable(blocks))]
        limit = args.count if args.count is not None else 0 if args.json or args.format is not None else SHOWN
        total = sum(map(len, blocks))
        output = args.with_output or (args.format is not None and names_output(args.format))
        records = itertools.chain.from_iterable(
            reader.jobs(ids=block, with_output=output) for block in limited(blocks, limit))
        if args.json:
            write_json(records)
        elif args.format is not None:
            line = formatter(args.format)
            say_all(map(line, records))
        else:
            table(records, reader)
            footer(reader, min(total, limit or total), total)


def recursively(reader: RunReader, args: Namespace) -> None:
    """The run's jobs, then those of each instance inside it; ``instance`` is the path of jobs that leads there."""
    from mpiflux.cli.nested import walk

    everything: list[dict[str, Any]] = []
    output = args.with_output or (args.format is not None and names_output(args.format))
    limit = args.count if args.count is not None else 0 if args.json or args.format is not None else SHOWN
    line = formatter(args.format) if args.format is not None else None

    def show(one: RunReader, path: str, title: str) -> None:
        ids = limited(chosen(one, args), limit)
        records = ({"instance": path, **record} for block in ids for record in one.jobs(ids=block, with_output=output))
        if args.json:
            everything.extend(records)
        elif line is not None:
            say_all(map(line, records))
        else:
            if title:
                say(f"\n{title}")
            table(records, one)

    show(reader, "", "")
    for inner, below in walk(reader):
        if isinstance(below, str):
            tell(f"mpiflux: {inner.path}: {below}")
            continue
        try:
            show(below, inner.path, inner.title(below))
        except Trouble as trouble:
            # a name in --filter may be one of the other instances' only
            if args.filter is None:
                raise
            tell(f"mpiflux: {inner.path}: {trouble}")
    if args.json:
        write_json(everything)


def explain(args: Namespace) -> None:
    """Why one job has not started."""
    with reading(args) as reader:
        id = reader.one(args.explain)
        record, live, directory = reader.job(id), reader.state == "running", reader.directory
    facts: list[tuple[str, float]]
    if record["state"] == "INACTIVE":
        facts = [(f"it has ended: {record['result']}" + (f", {record['reason']}" if record["reason"] else ""), 0.0)]
    elif not live:
        facts = [("its instance has ended: go on with `mpiflux run --resume`", 0.0)]
    else:
        from mpiflux.client.entry import connect
        from mpiflux.client.errors import FluxError

        try:
            with connect(str(directory)) as flux:
                facts = flux.explain(id)
        except FluxError as error:
            raise Trouble(str(error), 1) from None
    if args.json:
        say(json.dumps({"id": id, "state": record["state"], "reasons": [
            {"text": text, "time": when or None} for text, when in facts]}))
        return
    say(f"{record['name']}[{record['index']}], job {id}, {record['state']}:")
    for text, when in facts:
        say(f"  {printable(text)}" + (f" {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(when))}" if when else ""))


def chosen(reader: RunReader, args: Namespace) -> list[Sequence[int]]:
    """Ids to show, in blocks by what matters more."""
    import numpy as np

    if args.filter is not None:
        return [select(reader, args.filter)]
    if args.all or reader.state != "running":
        return [range(1, reader.total + 1)]
    state, result = reader.table.state[:reader.total], reader.table.result[:reader.total]
    masks = (state == _RUN, (state == _INACTIVE) & (result != _COMPLETED), (state != _RUN) & (state != _INACTIVE))
    return [(np.flatnonzero(mask) + 1).tolist() for mask in masks]


def limited(blocks: Iterable[Sequence[int]], limit: int) -> Iterator[Sequence[int]]:
    left = limit
    for block in blocks:
        part = block[:left] if limit else block
        if len(part):
            yield part
        left -= len(part)
        if limit and left <= 0:
            return


def write_json(records: Iterable[dict[str, Any]]) -> None:
    """A list, a record a line, as they come."""
    def lines() -> Iterator[str]:
        texts = map(json.dumps, records)
        before = next(texts, None)
        if before is None:
            yield "[]"
            return
        before = "[" + before
        for text in texts:
            yield before + ","
            before = " " + text
        yield before + "]"

    say_all(lines())


# -- one line of a person's own ----------------------------------------------------------------------------------


class Nothing:
    """What has no value yet, in any format: ``-``."""

    def __format__(self, spec: str) -> str:
        width = "".join(itertools.takewhile(str.isdigit, spec.lstrip("<>=^+- #0,_")))
        aligned = next((c for c in spec[:2] if c in "<>^"), ">" if spec[-1:] in "dfeg" and spec else "<")
        return format("-", aligned + width if width else "")

    def __getitem__(self, key: object) -> Nothing:
        return self


class Params(dict[str, Any]):
    """Parameters: ``{params}`` is all of them, ``{params[x]}`` one; a job without it shows ``-``."""

    def __missing__(self, key: str) -> Nothing:
        return Nothing()

    def __format__(self, spec: str) -> str:
        return format(parameters(self), spec)


def names_output(text: str) -> bool:
    try:
        return any(name in ("stdout", "stderr") for _, name, _, _ in string.Formatter().parse(text))
    except ValueError:
        return False


def formatter(text: str) -> Callable[[dict[str, Any]], str]:
    """What turns a record into a line. Raises Trouble for a format that is none."""
    try:
        for _, field, spec, conversion in string.Formatter().parse(text):
            if field is None:
                continue
            if "{" in (spec or ""):
                raise Trouble(f"--format: {{{field}:{spec}}}: a width is a number")
            name = field.partition("[")[0]
            if field in OF_FLUX:
                raise Trouble(f"--format: there is no field {field!r}; here it is {{{OF_FLUX[field]}}}")
            if name not in FIELDS and name not in DERIVED:
                raise Trouble(f"--format: there is no field {name or field!r}{suggestion(name, (*FIELDS, *DERIVED))}")
            if conversion or "." in field or (("[" in field) != (name == "params") and "[" in field):
                raise Trouble(f"--format: {{{field}}}: only {{name}}, {{name:width}} and {{params[NAME]}} are known")
    except ValueError as error:
        raise Trouble(f"--format: {error}") from None

    def line(record: dict[str, Any]) -> str:
        values = values_of(record)
        try:
            return text.format_map(values)
        except (ValueError, TypeError) as error:
            raise Trouble(f"--format: {error}") from None
        except MemoryError:
            raise Trouble("--format: a width is too large") from None

    return line


def values_of(record: dict[str, Any]) -> dict[str, Any]:
    values = {key: Nothing() if value is None or value == "" else value for key, value in record.items()}
    values["params"] = Params(record["params"])
    values["nodes"] = host_list(record["nodes"]) or Nothing()
    for key in ("cores", "gpus"):
        values[key] = idsets(record[key]) or Nothing()
    begin, end = record["t_start"], record["t_finish"]
    values.setdefault("instance", Nothing())
    values["job"] = f"{record['name']}[{record['index']}]"
    values["status"], values["exit"] = status(record), exit_text(record) or Nothing()
    values["runtime"] = end - begin if begin is not None and end is not None else Nothing()
    values["waited"] = begin - record["t_submit"] if begin is not None else Nothing()
    return values


# -- the table ---------------------------------------------------------------------------------------------------


def status(record: dict[str, Any]) -> str:
    return str(record["result"] or record["state"])


def exit_text(record: dict[str, Any]) -> str:
    code = record["returncode"]
    if record["result"] == "CANCELED" and record["t_start"] is None:
        return ""
    return "" if code is None else signal_name(-code) if code < 0 else str(code)


def idsets(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ";".join(value)


def parameters(params: dict[str, Any]) -> str:
    return " ".join(f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"
                    for name, value in params.items())


HEAD = ("ID", "JOB", "STATUS", "EXIT", "TASKS", "TIME", "NODE", "CORES", "GPUS", "INFO")
_RIGHT = {0, 3, 4, 5}
_OPTIONAL = {3: "", 4: "1", 6: "", 7: "", 8: "", 9: ""}
"""Columns to leave out where no row has anything but this."""


def row(record: dict[str, Any], now: float) -> tuple[str, ...]:
    begin, end = record["t_start"], record["t_finish"]
    spent = None if begin is None or record["state"] == "SCHED" else max((end or now) - begin, 0.0)
    info = record["reason"] or parameters(record["params"])
    return (str(record["id"]), f"{record['name']}[{record['index']}]", status(record), exit_text(record),
            str(record["tasks"]), duration(spent), host_list(record["nodes"]), idsets(record["cores"]),
            idsets(record["gpus"]), printable(str(info)))


def table(records: Iterable[dict[str, Any]], reader: RunReader) -> None:
    """Aligned by the first rows; a longer cell further down moves its own row only."""
    now = clock(reader)
    rows = (row(record, now) for record in records)
    first = list(itertools.islice(rows, SHOWN))
    if not first:
        return
    keep = [i for i in range(len(HEAD)) if i not in _OPTIONAL or any(r[i] != _OPTIONAL[i] for r in first)]
    widths = [max(len(HEAD[i]), *(len(r[i]) for r in first)) for i in range(len(HEAD))]
    colours = colourful(sys.stdout)
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    say(aligned(HEAD, keep, widths, room, colours, head=True))
    say_all(aligned(r, keep, widths, room, colours) for r in itertools.chain(first, rows))


def aligned(cells: Sequence[str], keep: Sequence[int], widths: Sequence[int], room: int, colours: bool,
            head: bool = False) -> str:
    parts, used = [], 0
    for i in keep:
        text = cells[i]
        if i == keep[-1] and i not in _RIGHT:
            text = shorten(text, max(room - used, 10)) if room else text
        else:
            text = text.rjust(widths[i]) if i in _RIGHT else text.ljust(widths[i])
        used += len(text) + 2
        if i == 2 and not head:
            text = paint(text, _COLOURS.get(text.strip(), "dim"), colours)
        parts.append(text)
    line = "  ".join(parts).rstrip()
    return paint(line, "bold", colours and head)


def clock(reader: RunReader) -> float:
    """Until when a job that runs has run: now, or the end of an instance that is no more."""
    import time

    end = reader.meta.get("t_end")
    return float(end) if reader.state != "running" and isinstance(end, (int, float)) else time.time()


def footer(reader: RunReader, shown: int, total: int) -> None:
    """What the table does not say, on stderr."""
    c = reader.table.counts()
    parts = [(c.completed, "completed"), (c.failed, "failed"), (c.timeout, "timed out"), (c.canceled, "canceled"),
             (c.run, "running"), (c.sched + c.depend, "waiting")]
    text = f"{plural(c.total, 'job')}: " + (", ".join(f"{n:,} {word}" for n, word in parts if n) or "none")
    state = reader.state
    if state != "finished":
        text += f"; the run is {'going on' if state == 'running' else 'interrupted'}"
    if shown < total:
        text += f"; {shown:,} of {total:,} shown, -n 0 shows all"
    elif total < c.total and state == "running":
        text += f"; {shown:,} shown, -a shows all"
    tell(text)
