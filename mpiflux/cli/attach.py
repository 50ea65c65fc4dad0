"""``job attach`` and ``job kill``: a job that runs, as if it ran here."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpiflux.cli.console import say, tell, write_bytes
from mpiflux.cli.job import alive, exit_status, pause, unfinished
from mpiflux.cli.live import connected
from mpiflux.cli.parser import Parser, suggestion
from mpiflux.cli.rundir import Trouble, add_directory, answered, find, reading, swap

if TYPE_CHECKING:
    from mpiflux.client.live import Flux, Job

TWICE = 2.0
"""Seconds within which a second Ctrl-C cancels the job."""
FORWARDED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
"""Signals that are passed on to the job as they are."""
_READ = 1 << 16


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    if name == "job kill":
        parser.examples("mpiflux job kill -s USR1 12", "mpiflux job kill sim --run-dir runs/first")
        parser.add_argument("ids", metavar="ID", nargs="+", help="jobs: 12, sim.3, or sim for all of a name")
        parser.add_argument("-s", "--signal", metavar="SIG", default="TERM", help="name or number (default TERM)")
        parser.add_argument("--run-dir", metavar="DIR", help="the instance, by its run directory")
        return lambda args: answered(args, kill)
    parser.examples("mpiflux job attach 12 runs/first > output.txt", "mpiflux job attach sim.3")
    parser.add_argument("id", metavar="ID", help="the job: 12, sim.3 or 'sim[3]'")
    parser.add_argument("-r", "--read-only", action="store_true", help="pass neither stdin nor signals on to the job")
    add_directory(parser)

    def handler(args: Namespace) -> int:
        swap(args, "id")
        return answered(args, attach)

    return handler


def attach(args: Namespace) -> int:
    """Print what the job writes, until it ends; the exit status is the job's."""
    from mpiflux.client.entry import connect
    from mpiflux.client.errors import FluxError, NotConnected
    from mpiflux.client.live import Flux

    named = args.directory or args.run_dir
    try:
        flux: Any = connect(named if named or "MPIFLUX_URI" in os.environ else find(args))
    except NotConnected:
        return _read(args)
    with flux:
        if not isinstance(flux, Flux):
            return _read(args)
        try:
            return _follow(flux, flux.job(args.id.replace("[", ".").removesuffix("]")), args.read_only)
        except FluxError as error:
            raise Trouble(str(error), 1) from None


# -- a live instance -----------------------------------------------------------------------------------------------


class _Detached(Exception):
    """Ctrl-Z after Ctrl-C."""


def _follow(flux: Flux, job: Job, read_only: bool) -> int:
    if not read_only:
        _pass_signals(job)
        if flux.kvs.get(f"job.{job.id}.jobspec").get("input") == "-":
            threading.Thread(target=_pass_stdin, args=(job,), name="stdin", daemon=True).start()
    attempt = 0
    try:
        for piece in job.output():
            if attempt and piece.attempt > attempt:
                tell(f"mpiflux: job {job.id} runs again, attempt {piece.attempt}")
            attempt = piece.attempt
            write_bytes(piece.data, sys.stdout if piece.stream == "stdout" else sys.stderr)
        record = job.record()
    except _Detached:
        tell(f"mpiflux: job {job.id} goes on; `mpiflux job attach {job.id}` follows it again")
        return 0
    if record.state != "INACTIVE":
        raise Trouble(f"job {job.id} has not ended, and its instance has: go on with `mpiflux run --resume`", 1)
    _tell_cut(job.id, record.truncated)
    if record.reason:
        tell(f"mpiflux: job {job.id}: {record.reason}")
    return exit_status({"returncode": record.returncode, "result": record.result})


def _tell_cut(id: int, streams: list[str]) -> None:
    if streams:
        tell(f"mpiflux: job {id}: only the beginning of its {' and '.join(streams)} was kept; see output_limit")


def _pass_stdin(job: Job) -> None:
    from mpiflux.client.errors import FluxError

    try:
        while data := os.read(0, _READ):
            job.stdin.write(data)
        job.stdin.close()
    except (FluxError, OSError):
        return  # it has ended, or takes no more: its output says what comes of it


def _pass_signals(job: Job) -> None:
    """As Flux does: Ctrl-C twice cancels the job, Ctrl-C and then Ctrl-Z leaves it alone."""
    last = -TWICE

    def later(what: Callable[..., Any], *args: Any) -> None:
        # a handler interrupts whatever this thread does, perhaps in the middle of talking to the instance
        threading.Thread(target=_quietly, args=(what, *args), daemon=True).start()

    def interrupted(number: int, frame: Any) -> None:
        nonlocal last
        # first of all: the next one may come while this one is dealt with
        before, last = last, time.monotonic()
        if last - before < TWICE:
            later(job.cancel, "cancelled by Ctrl-C")
        else:
            tell(f"mpiflux: Ctrl-C again within {TWICE:g} s cancels job {job.id}, Ctrl-Z leaves it alone")

    def stopped(number: int, frame: Any) -> None:
        if time.monotonic() - last < TWICE:
            raise _Detached
        os.kill(os.getpid(), signal.SIGSTOP)

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTSTP, stopped)
    for number in FORWARDED:
        signal.signal(number, lambda number, frame: later(job.signal, number))


def _quietly(what: Callable[..., Any], *args: Any) -> None:
    from mpiflux.client.errors import FluxError

    try:
        what(*args)
    except FluxError as error:
        tell(f"mpiflux: {error}")


# -- a run directory -----------------------------------------------------------------------------------------------


def _read(args: Namespace) -> int:
    """The same from the run directory alone, looked at again and again while the run goes on."""
    with reading(args) as reader:
        id = reader.one(args.id)
        shown = {1: 0, 2: 0}
        attempt = 0
        while True:
            began = time.monotonic()
            live = alive(reader)
            job = reader.job(id)
            if job["attempts"] != attempt:
                if attempt and any(shown.values()):
                    tell(f"mpiflux: job {id} runs again, attempt {job['attempts']}")
                attempt, shown = job["attempts"], {1: 0, 2: 0}
            for number, stream in ((1, sys.stdout), (2, sys.stderr)):
                data = reader.output(id, number)
                if len(data) > shown[number]:
                    write_bytes(data[shown[number]:], stream)
                    shown[number] = len(data)
            if job["state"] == "INACTIVE":
                _tell_cut(id, job["truncated"])
                return exit_status(job)
            if not live:
                raise unfinished(id)
            pause(began)


# -- kill ----------------------------------------------------------------------------------------------------------


def kill(args: Namespace) -> int:
    number = _number(args.signal)
    return connected(args, lambda flux, given: _kill(flux, given.ids, number))


def _kill(flux: Flux, refs: list[str], number: int) -> int:
    n = sum(flux.signal(flux.group(ref) if not ref.isdigit() else int(ref), number) for ref in refs)
    say(f"{n} job{'s' * (n != 1)} signalled")
    if not n:
        tell("mpiflux: none of them runs")
    return 0 if n else 1


def _number(text: str) -> int:
    """A signal by number or name, with or without SIG. Raises Trouble."""
    if text.isascii() and text.isdigit() and 0 < int(text) < 65:
        return int(text)
    names = {one.name[3:]: one.value for one in signal.Signals if one.name.startswith("SIG")}
    name = text.upper().removeprefix("SIG")
    if name not in names:
        raise Trouble(f"--signal: there is no signal {text!r}{suggestion(name, names)}")
    return int(names[name])
