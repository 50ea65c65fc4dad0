"""``export``: the table of jobs for other programs."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from mpiflux.cli.console import lost, tell
from mpiflux.cli.parser import Parser
from mpiflux.cli.rundir import FILTER_HELP, Trouble, add_directory, answered, reading, select

SUFFIXES = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".pq": "parquet"}


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples("mpiflux export runs/first --output jobs.csv",
                    "mpiflux export runs/first --format json --with-output --filter sim,completed > sim.json",
                    "mpiflux export runs/first --output jobs.parquet")
    add_directory(parser)
    add = parser.add_argument
    add("--format", choices=("csv", "json", "parquet"),
        help="default: by the name of --output, else csv. parquet needs the package pyarrow")
    add("-o", "--output", metavar="FILE", help="write there (default: standard output)")
    add("--with-output", action="store_true", help="also the columns stdout and stderr")
    add("-f", "--filter", metavar="LIST", help=FILTER_HELP)
    return lambda args: answered(args, export)


def export(args: Namespace) -> None:
    from mpiflux.report.export import NoParquet, column_names, write_csv, write_json, write_parquet

    output = args.output if args.output != "-" else None
    kind = args.format or (SUFFIXES.get(os.path.splitext(output)[1].lower()) if output else None) or "csv"
    if kind == "parquet" and output is None:
        raise Trouble("Parquet is a binary format: name a file with --output")
    with reading(args) as reader:
        ids = select(reader, args.filter) if args.filter is not None else range(1, reader.total + 1)
        # no ids: reader.jobs would take None for all
        records: Any = reader.jobs(ids=ids, with_output=args.with_output) if len(ids) else ()
        groups = [group for group in reader.groups if covers(ids, group.first_id, group.stop_id)]
        try:
            if kind == "parquet":
                into(output, lambda path: write_parquet(path, records, groups, args.with_output))
            else:
                columns = column_names(groups, args.with_output)

                def text(path: str | None) -> None:
                    with opened(path) as file:
                        if kind == "csv":
                            write_csv(file, records, columns)
                        else:
                            write_json(file, records)

                into(output, text)
        except NoParquet as error:
            raise Trouble(str(error)) from None
    if output:
        tell(f"{output}: {len(ids):,} jobs")


def covers(ids: Any, first: int, stop: int) -> bool:
    from bisect import bisect_left

    at = bisect_left(ids, first)
    return at < len(ids) and ids[at] < stop


def opened(path: str | None) -> Any:
    """Text as the jobs wrote it, undecodable bytes included."""
    if path is None:
        return open(sys.stdout.fileno(), "w", encoding="utf-8", errors="surrogateescape", newline="", closefd=False)
    return open(path, "w", encoding="utf-8", errors="surrogateescape", newline="")


def into(output: str | None, write: Callable[[Any], None]) -> None:
    """Write a file whole or not at all. Raises Trouble where it cannot be written, Gone or Unwritable for stdout."""
    if output is None:
        try:
            write(None)
        except OSError as error:
            raise lost(sys.stdout, error) from error
        return
    whole = not os.path.exists(output) or os.path.isfile(output)
    part = f"{output}.part-{os.getpid()}" if whole else output
    try:
        write(part)
        if whole:
            os.replace(part, output)
    except OSError as error:
        raise Trouble(f"{output}: cannot be written: {error.strerror or error}", 1) from None
    finally:
        if whole and os.path.exists(part):
            os.unlink(part)
