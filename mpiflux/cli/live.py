"""Commands that talk to a live instance: submit, cancel, keys, events, messages, queues, uptime."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpiflux.cli.console import duration, say
from mpiflux.cli.parser import Parser, assignment, moment, natural, positive, seconds
from mpiflux.cli.rundir import Trouble, add_namespace, answered

if TYPE_CHECKING:
    from mpiflux.client.keys import Kvs
    from mpiflux.client.live import Flux

_EXAMPLES = {
    "submit": ("mpiflux submit -n1 -c2 -g1 ./sim --rho 0.5", "mpiflux submit --cc=0-999 --wait ./sim --seed '{cc}'",
               "mpiflux submit --dependency=afterok:12 python fit.py",
               "mpiflux submit --instance -N2 -n2 -c8 inner.yaml --run-dir inner"),
    "cancel": ("mpiflux cancel 12 13", "mpiflux cancel --all --run-dir runs/first"),
    "job cancel": ("mpiflux job cancel sim.3 --reason 'no need'",),
    "kvs put": ("mpiflux kvs put model.rho 0.5", "mpiflux kvs put name '\"a text\"'"),
    "kvs rm": ("mpiflux kvs rm model.rho", "mpiflux kvs rm -R model"),
    "kvs watch": ("mpiflux kvs watch model",),
    "events": ("mpiflux events", "mpiflux events sim --names start,clean --json"),
    "pub": ("mpiflux pub md.energy '{\"e\": -1.5}'",),
    "sub": ("mpiflux sub 'md.**'",),
    "queue": ("mpiflux queue",),
    "uptime": ("mpiflux uptime",),
}


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples(*_EXAMPLES[name])
    parser.add_argument("--run-dir", metavar="DIR", help="the instance, by its run directory (default: $MPIFLUX_URI)")
    add, function = _DEFINED[name]
    add(parser)
    return lambda args: answered(args, lambda given: _connected(given, function))


def _connected(args: Namespace, function: Callable[[Flux, Namespace], int | None]) -> int:
    from mpiflux.client.entry import connect
    from mpiflux.client.errors import FluxError

    try:
        with connect(args.run_dir) as flux:
            return function(flux, args) or 0
    except (FluxError, TypeError, ValueError) as error:
        raise Trouble(str(error), 1) from None


# -- jobs --------------------------------------------------------------------------------------------------------


def _submit_options(parser: Parser) -> None:
    parser.remainder = "command"
    add = parser.add_argument
    add("command", metavar="COMMAND", nargs="+", help="the command and its arguments; with --cc, {cc} is replaced")
    add("-n", "--ntasks", metavar="N", type=positive, default=1, help="tasks (default 1)")
    add("-c", "--cores-per-task", metavar="N", type=positive, default=1, help="cores for each task (default 1)")
    add("-g", "--gpus-per-task", metavar="N", type=natural, default=0, help="GPUs for each task")
    add("-N", "--nodes", metavar="N", type=natural, default=0, help="nodes to spread the tasks over")
    add("--exclusive", action="store_true", help="whole nodes")
    add("-t", "--time-limit", metavar="DURATION", type=seconds, default=0.0, help="90s, 10m, 1h30m")
    add("--urgency", metavar="N", type=natural, default=16, help="0 to 31, higher first (default 16); 0 holds the job")
    add("--dependency", metavar="KIND:ID", action="append", default=[], help="afterok, afterany or afternotok")
    add("--begin-time", metavar="TIME", type=moment, default=0.0,
        help="do not start before: 2026-11-23T08:00, or +10m from now")
    add("--cc", metavar="IDS", default="", help="a job for each of 0-9,12")
    add("--job-name", metavar="NAME", default="", help="default: that of the command")
    add("--env", metavar="NAME=VALUE", type=assignment, action="append", default=[], help="set a variable; repeatable")
    add("--cwd", metavar="DIR", help="where it runs (default: here)")
    add("--output", metavar="FILE", default="", help="file for stdout instead of the store; may have {job.id}")
    add("--error", metavar="FILE", default="", help="the same for stderr")
    add("--input", metavar="FILE", default="", help="file for stdin")
    add("--mpi", choices=("none", "pmi1"), default="none", help="how the tasks of an MPI program find each other")
    add("--instance", action="store_true",
        help="COMMAND is a workflow file and options of `mpiflux run`: an instance with a rank a task runs it")
    add("--wait", action="store_true", help="wait for the end; the exit status says whether all completed")
    add("--watch", action="store_true", help="wait, and print what each job wrote as it ends")


def submit(flux: Flux, args: Namespace) -> int:
    from mpiflux.client import plans
    from mpiflux.model import idset

    command: list[str] = args.command
    if args.instance:
        command = _instance(args)
    options: dict[str, Any] = {
        "name": args.job_name, "tasks": args.ntasks, "cores": args.cores_per_task, "gpus": args.gpus_per_task,
        "nodes": args.nodes, "exclusive": args.exclusive, "time_limit": args.time_limit, "urgency": args.urgency,
        "after": args.dependency or None, "begin_time": args.begin_time,
        "env": dict(args.env), "output": args.output, "error": args.error,
        "input": args.input, "hold": args.urgency == 0, "mpi": args.mpi}
    if args.cwd is not None:
        options["cwd"] = args.cwd
    if args.cc:
        # only {cc} means something, as in Flux
        command = ["{cc}".join(map(plans.literal, word.split("{cc}"))) for word in command]
        options["env"] = {k: "{cc}".join(map(plans.literal, v.split("{cc}"))) for k, v in options["env"].items()}
        jobs = flux.submit_many(command, params={"cc": list(idset.decode(args.cc))}, **options)
    else:
        jobs = flux.submit_many([command], **options)
    say("\n".join(map(str, jobs.ids)))
    if args.watch:
        for job in jobs.as_completed():
            _print_output(job)
    return 0 if not (args.wait or args.watch) or jobs.wait().ok else 1


def _instance(args: Namespace) -> list[str]:
    """The command of an instance inside a job; names of files are those of here."""
    import sys

    if args.ntasks > 1:
        args.mpi = "pmi1"
    args.job_name = args.job_name or os.path.basename(args.command[0]).rpartition(".")[0] or args.command[0]
    return [sys.executable, "-m", "mpiflux", "run", *args.command]


def _print_output(job: Any) -> None:
    import sys

    from mpiflux.cli.console import write

    result = job.result()
    write(result.stdout)
    write(result.stderr, sys.stderr)


def _cancel_options(parser: Parser) -> None:
    parser.add_argument("ids", metavar="ID", nargs="*", help="jobs: 12, sim.3, or sim for all of a name")
    parser.add_argument("--all", action="store_true", help="all jobs")
    parser.add_argument("--reason", metavar="TEXT", default="cancelled", help="what the job's record will say")


def cancel(flux: Flux, args: Namespace) -> int:
    from mpiflux.client import plans

    if bool(args.ids) == args.all:
        raise Trouble("which jobs? Give their ids, or --all")
    if args.all:
        n = flux.cancel(reason=args.reason)
    else:
        chosen = [range(*flux._do(plans.resolve(ref))) for ref in args.ids]
        n = flux.cancel([job for ids in chosen for job in ids], reason=args.reason)
    say(f"{n} job{'s' * (n != 1)} cancelled")
    return 0 if n else 1


def _event_options(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="of this job id or name only (default: all jobs)")
    parser.add_argument("--names", metavar="LIST", default="", help="these events only: start,clean")
    parser.add_argument("--since", metavar="N", type=natural, default=0, help="go on from event N (default: the start)")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")


def events(flux: Flux, args: Namespace) -> None:
    names = tuple(filter(None, args.names.split(",")))
    for event in flux.events(args.name, names=names, since=args.since):
        if args.json:
            say(json.dumps(event._asdict()))
        else:
            rest = "".join(f" {key}={json.dumps(value)}" for key, value in event.context.items())
            say(f"{event.timestamp:.6f} {event.job} {event.name}{rest}")


# -- keys and messages -------------------------------------------------------------------------------------------


def keys(flux: Flux, args: Namespace) -> Kvs:
    return flux.kvs if args.namespace is None else flux.kvs.namespace("").namespace(args.namespace)


def _put_options(parser: Parser) -> None:
    add_namespace(parser)
    parser.add_argument("key", metavar="KEY", help="names joined by dots")
    parser.add_argument("value", metavar="VALUE", help="JSON; what is none is taken as a text")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def put(flux: Flux, args: Namespace) -> None:
    keys(flux, args).put(args.key, _value(args.value))


def _rm_options(parser: Parser) -> None:
    add_namespace(parser)
    parser.add_argument("key", metavar="KEY", help="names joined by dots")
    parser.add_argument("-R", "--recursive", action="store_true", help="also a directory, and all in it")


def rm(flux: Flux, args: Namespace) -> None:
    keys(flux, args).rm(args.key, recursive=args.recursive)


def _watch_options(parser: Parser) -> None:
    add_namespace(parser)
    parser.add_argument("key", metavar="KEY", nargs="?", default="", help="and all below it (default: all keys)")


def watch(flux: Flux, args: Namespace) -> None:
    for change in keys(flux, args).watch(args.key):
        say(json.dumps({**change._asdict(), "value": _shown(change.value)}))


def _shown(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _pub_options(parser: Parser) -> None:
    parser.add_argument("topic", metavar="TOPIC", help="names joined by dots")
    parser.add_argument("payload", metavar="VALUE", nargs="?", default="null", help="JSON, or a text")


def pub(flux: Flux, args: Namespace) -> None:
    flux.publish(args.topic, _value(args.payload))


def _sub_options(parser: Parser) -> None:
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="**",
                        help="a topic; * is any one name, ** any number of them (default: all)")


def sub(flux: Flux, args: Namespace) -> None:
    for message in flux.subscribe(args.pattern):
        say(json.dumps({"topic": message.topic, "payload": _shown(message.payload)}))


def _json_option(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def queue(flux: Flux, args: Namespace) -> None:
    found = flux.queues()
    if args.json:
        say(json.dumps({name: dict(zip(("waiting", "taken", "consumers"), n, strict=True))
                        for name, n in found.items()}))
        return
    for name, (waiting, taken, consumers) in sorted(found.items()):
        say(f"{name}  {waiting} waiting, {taken} with consumers, {consumers} consumers waiting")


def uptime(flux: Flux, args: Namespace) -> None:
    status = flux.status()
    if args.json:
        say(json.dumps(status))
        return
    jobs = status["jobs"]
    say(f"up {duration(status['now'] - status['t_start'])}, {len(status['nodes'])} nodes, {status['cores']} cores, "
        f"{status['gpus']} GPUs, {status['clients']} clients; jobs: {jobs['run']} run, "
        f"{jobs['depend'] + jobs['sched']} wait, {jobs['inactive']} ended; {os.path.basename(status['run_dir'])}")


_Define = tuple[Callable[[Parser], None], Callable[["Flux", Namespace], "int | None"]]
_DEFINED: dict[str, _Define] = {
    "submit": (_submit_options, submit), "cancel": (_cancel_options, cancel), "job cancel": (_cancel_options, cancel),
    "events": (_event_options, events), "kvs put": (_put_options, put), "kvs rm": (_rm_options, rm),
    "kvs watch": (_watch_options, watch), "pub": (_pub_options, pub), "sub": (_sub_options, sub),
    "queue": (_json_option, queue), "uptime": (_json_option, uptime),
}
