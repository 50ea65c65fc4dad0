"""``submit`` and ``bulksubmit``: jobs for a live instance, in the words of Flux."""

from __future__ import annotations

import os
import random
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from mpiflux.cli.console import say, write_bytes
from mpiflux.cli.fluxwords import environment, file_name, minutes, without
from mpiflux.cli.job import exit_status
from mpiflux.cli.live import connected
from mpiflux.cli.parser import Parser, moment, natural, positive
from mpiflux.cli.rundir import Trouble, answered
from mpiflux.client import label

if TYPE_CHECKING:
    from mpiflux.client.live import Flux, Job, Jobs

FOLLOWED = 1000
"""Jobs whose output ``--watch`` shows as they write it; of more, each one's as it ends."""


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    if name == "submit":
        parser.examples(
            "mpiflux submit -n1 -c2 -g1 ./sim --rho 0.5", "mpiflux submit --cc=0-999 --wait ./sim --seed '{cc}'",
            "mpiflux submit --dependency=afterok:12 python fit.py",
            "mpiflux submit --instance -N2 -n2 -c8 inner.yaml --run-dir inner")
    else:
        parser.examples(
            "mpiflux bulksubmit --watch echo {} ::: one two three",
            "mpiflux bulksubmit -c2 ./sim --rho {0} --seed {1} ::: 0.1 0.2 ::: 1 2 3",
            "ls *.in | mpiflux bulksubmit --wait ./convert {} {.%}.out")
    parser.add_argument("--run-dir", metavar="DIR", help="the instance, by its run directory (default: $MPIFLUX_URI)")
    _options(parser, name == "bulksubmit")
    function = submit if name == "submit" else bulksubmit
    return lambda args: answered(args, lambda given: function(given))


def _options(parser: Parser, bulk: bool) -> None:
    parser.remainder = "command"
    add = parser.add_argument
    if bulk:
        add("command", metavar="COMMAND", nargs="+",
            help="a command with {} or {0} {1}, and its inputs: ::: a b, :::: FILE, :::+ (or lines of stdin)")
        add("--shuffle", action="store_true", help="in random order")
    else:
        add("command", metavar="COMMAND", nargs="+", help="the command and its arguments; with --cc, {cc} is replaced")
        add("--cc", "--bcc", metavar="IDS", default="", help="a job for each of 0-9,12")
        add("--instance", action="store_true",
            help="COMMAND is a workflow file and options of `mpiflux run`: an instance with a rank a task runs it")
    add("--dry-run", action="store_true", help="print the commands, and submit nothing")
    add("-n", "--ntasks", metavar="N", type=positive, default=1, help="tasks (default 1)")
    add("-c", "--cores-per-task", metavar="N", type=positive, default=1, help="cores for each task (default 1)")
    add("-g", "--gpus-per-task", metavar="N", type=natural, default=0, help="GPUs for each task")
    add("-N", "--nodes", metavar="N", type=natural, default=0, help="nodes to spread the tasks over")
    add("--exclusive", action="store_true", help="whole nodes")
    add("-t", "--time-limit", metavar="DURATION", type=minutes, default=0.0,
        help="30s, 10m, 1h30m; a bare number is minutes, as in Flux")
    add("--urgency", metavar="N", type=natural, default=16, help="0 to 31, higher first (default 16); 0 holds the job")
    add("--dependency", metavar="KIND:ID", action="append", default=[], help="afterok, afterany or afternotok")
    add("--begin-time", metavar="TIME", type=moment, default=0.0,
        help="do not start before: 2026-11-23T08:00, or +10m from now")
    add("--job-name", metavar="NAME", default="", help="default: that of the command")
    add("--env", metavar="RULE", action="append", default=[],
        help="NAME=VALUE sets a variable, NAME takes it from here, -NAME removes it; repeatable")
    add("--secret", metavar="NAME", action="append", default=[],
        help="a variable whose value, which it has here, is stored nowhere; repeatable")
    add("--cwd", metavar="DIR", help="where it runs (default: here)")
    add("--output", metavar="FILE", type=file_name, default="",
        help="file for stdout instead of the store; may have {{id}} or {job.id}")
    add("--error", metavar="FILE", type=file_name, default="", help="the same for stderr")
    add("--input", metavar="FILE", type=file_name, default="",
        help="file for stdin; - is what `mpiflux job attach` passes on")
    add("--mpi", choices=("none", "pmi1", "pmix"), default="none",
        help="how the tasks of an MPI program find each other: pmi1 for MPICH and Intel MPI, pmix for Open MPI")
    add("--wait", action="store_true", help="wait for the end; the exit status is the highest of the jobs")
    add("--watch", action="store_true", help="wait, and print what the jobs write, as they write it")
    add("--label-io", action="store_true", help="put the number of its task before each line of output")
    add("-q", "--quiet", action="store_true", help="do not print the ids")


def options_for(args: Namespace) -> dict[str, Any]:
    """What ``submit`` of the client takes."""
    options: dict[str, Any] = {
        "name": args.job_name, "tasks": args.ntasks, "cores": args.cores_per_task, "gpus": args.gpus_per_task,
        "nodes": args.nodes, "exclusive": args.exclusive, "time_limit": args.time_limit, "urgency": args.urgency,
        "after": args.dependency or None, "begin_time": args.begin_time,
        "env": args.sets, "output": args.output, "error": args.error,
        "input": args.input, "secrets": args.secret, "hold": args.urgency == 0, "mpi": args.mpi}
    if args.cwd is not None:
        options["cwd"] = args.cwd
    return options


def _rules(args: Namespace, command: list[str]) -> list[str]:
    """Read ``--env``: the variables that are set, and the command, which does not get those that are removed."""
    try:
        args.sets, args.removed = environment(args.env, os.environ)
    except ValueError as error:
        raise Trouble(str(error)) from None
    if args.removed or args.label_io:
        # not that of env
        args.job_name = args.job_name or os.path.basename(command[0])
    return _around(command, args)


def _around(command: list[str], args: Namespace) -> list[str]:
    """What is started for a command: it, or a program that runs it as the options ask."""
    command = without(command, args.removed)
    return [sys.executable, "-IS", label.__file__, *command] if args.label_io else command


def submit(args: Namespace) -> int:
    args.command = _rules(args, _instance(args) if args.instance else args.command)
    unset = [name for name in args.secret if name not in os.environ]
    if unset:
        raise Trouble(f"--secret={unset[0]}: no variable has that name here")
    if args.dry_run:
        for cc in _ids(args) or [0]:
            say(shlex.join(word.replace("{cc}", str(cc)) if args.cc else word for word in args.command))
        return 0
    return connected(args, _submit)


def _ids(args: Namespace) -> list[int]:
    from mpiflux.model import idset

    try:
        return list(idset.decode(args.cc)) if args.cc else []
    except ValueError as error:
        raise Trouble(f"--cc={args.cc}: {error}") from None


def _submit(flux: Flux, args: Namespace) -> int:
    from mpiflux.client import submission

    command: list[str] = args.command
    options = options_for(args)
    if args.cc:
        # only {cc} means something, as in Flux
        command = ["{cc}".join(map(submission.literal, word.split("{cc}"))) for word in command]
        options["env"] = {k: "{cc}".join(map(submission.literal, v.split("{cc}"))) for k, v in options["env"].items()}
        options["env"]["MPIFLUX_JOB_CC"] = "{cc}"
        jobs = flux.submit_many(command, params={"cc": _ids(args)}, **options)
    else:
        jobs = flux.submit_many([command], **options)
    return finish(flux, jobs, args)


def _instance(args: Namespace) -> list[str]:
    """The command of an instance inside a job; names of files are those of here."""
    if args.ntasks > 1:
        args.mpi = args.mpi if args.mpi != "none" else "pmi1"
    args.job_name = args.job_name or os.path.basename(args.command[0]).rpartition(".")[0] or args.command[0]
    return [sys.executable, "-m", "mpiflux", "run", *args.command]


def bulksubmit(args: Namespace) -> int:
    """A job for every combination of inputs."""
    from mpiflux.cli.bulk import BadInputs, commands

    try:
        chosen = commands(args.command, sys.stdin)
    except BadInputs as error:
        raise Trouble(str(error)) from None
    if args.shuffle:
        random.shuffle(chosen)
    if chosen:
        _rules(args, chosen[0])
        chosen = [_around(command, args) for command in chosen]
    if args.dry_run:
        say("\n".join(map(shlex.join, chosen)))
        return 0
    return connected(args, lambda flux, given: finish(flux, flux.submit_many(chosen, **options_for(given)), given))


# -- afterwards ----------------------------------------------------------------------------------------------------


def finish(flux: Flux, jobs: Jobs, args: Namespace) -> int:
    """Say the ids, and wait if that is wanted."""
    if not args.quiet:
        say("\n".join(map(str, jobs.ids)))
    if args.watch:
        watch(flux, jobs)
    return 0 if not (args.wait or args.watch) or jobs.wait().ok else _highest(flux, jobs)


def _highest(flux: Flux, jobs: Jobs) -> int:
    """The highest exit status of jobs not all of which completed, as Flux has it."""
    from mpiflux.client.errors import NotConnected
    from mpiflux.model.states import Result

    wanted = set(jobs.ids)
    bad = [result.name for result in Result if result not in (Result.NONE, Result.COMPLETED, Result.LOST)]
    try:
        ended = [record for record in flux.jobs(results=bad) if record.id in wanted]
    except NotConnected:
        # the run directory is not to be seen from here
        ended = [job.record() for job in jobs]
    return max((exit_status({"returncode": one.returncode, "result": one.result}) for one in ended), default=1) or 1


def watch(flux: Flux, jobs: Jobs) -> None:
    """Print what jobs write, in whole lines, until all have ended."""
    if len(jobs) > FOLLOWED:
        for job in jobs.as_completed():
            for piece in job.output():
                write_bytes(piece.data, _stream(piece.stream))
        return
    news: SimpleQueue[_Followed] = SimpleQueue()
    left = [_Followed(flux, job, news) for job in jobs]
    while left:
        followed = news.get()
        if followed in left and not followed.go_on():
            left.remove(followed)


class _Followed:
    """One of several jobs whose output is printed; ``news`` gets it when there is something to print."""

    def __init__(self, flux: Flux, job: Job, news: SimpleQueue[_Followed]) -> None:
        from mpiflux.client.output import Output

        self._connection = connection = flux._connection
        self._begun = {"stdout": b"", "stderr": b""}
        known = Output(job.id)
        with connection.lock:
            self._items = connection.open_stream(known.op, 0, lambda value, error: None, convert=known.piece,
                                                 resumes=True, acknowledge=False)
            self._items.wake = lambda: news.put(self)

    def go_on(self) -> bool:
        """Print what has come; False at the end. Raises FluxError."""
        pieces = []
        with self._connection.lock:
            while self._items.has_items:
                pieces.append(self._items.take())
            ended, error = self._items.ended, self._items.error
        for piece in pieces:
            if piece is not None:
                whole, newline, begun = (self._begun[piece.stream] + piece.data).rpartition(b"\n")
                self._begun[piece.stream] = begun
                write_bytes(whole + newline, _stream(piece.stream))
        if ended:
            for stream, rest in self._begun.items():
                write_bytes(rest, _stream(stream))
        if error is not None:
            raise error
        return not ended


def _stream(name: str) -> Any:
    return sys.stdout if name == "stdout" else sys.stderr
