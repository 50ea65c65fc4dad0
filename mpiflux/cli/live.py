"""Commands that talk to a live instance: cancel, keys, events, messages, queues, uptime."""

from __future__ import annotations

import json
import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpiflux.cli.console import duration, near, say, tell
from mpiflux.cli.parser import Parser, natural
from mpiflux.cli.rundir import Trouble, add_namespace, answered

if TYPE_CHECKING:
    from mpiflux.client.keys import Kvs
    from mpiflux.client.live import Flux

_EXAMPLES = {
    "cancel": ("mpiflux cancel 12 13", "mpiflux cancel --all --run-dir runs/first"),
    "job cancel": ("mpiflux job cancel sim.3 --reason 'no need'",),
    "job urgency": ("mpiflux job urgency sim.3 31", "mpiflux job urgency sim hold", "mpiflux job urgency sim default"),
    "kvs put": ("mpiflux kvs put model.rho 0.5", "mpiflux kvs put name '\"a text\"'"),
    "kvs rm": ("mpiflux kvs rm model.rho", "mpiflux kvs rm -R model"),
    "kvs watch": ("mpiflux kvs watch model",),
    "events": ("mpiflux events", "mpiflux events sim --names start,clean --json"),
    "pub": ("mpiflux pub md.energy '{\"e\": -1.5}'",),
    "sub": ("mpiflux sub 'md.**'",),
    "queue": ("mpiflux queue", "mpiflux queue stop --message maintenance"),
    "uptime": ("mpiflux uptime",),
}


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples(*_EXAMPLES[name])
    parser.add_argument("--run-dir", metavar="DIR", help="the instance, by its run directory (default: $MPIFLUX_URI)")
    add, function = _DEFINED[name]
    add(parser)
    return lambda args: answered(args, lambda given: connected(given, function))


def connected(args: Namespace, function: Callable[[Flux, Namespace], int | None]) -> int:
    """Call a function with the instance that is meant. Raises Trouble for what goes wrong there."""
    from mpiflux.client.entry import connect
    from mpiflux.client.errors import FluxError
    from mpiflux.client.live import Flux

    try:
        flux: Any = connect(args.run_dir)
        with flux:
            if not isinstance(flux, Flux):
                what = args.parser.prog.removeprefix("mpiflux ")
                raise Trouble(f"{what} needs a live instance: {near(flux.run_dir)}: {flux.why}", 1)
            return function(flux, args) or 0
    except (FluxError, TypeError, ValueError) as error:
        raise Trouble(str(error), 1) from None


# -- jobs --------------------------------------------------------------------------------------------------------


def _cancel_options(parser: Parser) -> None:
    parser.add_argument("ids", metavar="ID", nargs="*", help="jobs: 12, sim.3, or sim for all of a name")
    parser.add_argument("--all", action="store_true", help="all jobs")
    parser.add_argument("-f", "--filter", metavar="LIST",
        help="a comma list of states (depend, sched, run; pending, active), names and ids: a job must be in one of the "
             "states, and of one of the names")
    parser.add_argument("--reason", metavar="TEXT", default="cancelled", help="what the job's record will say")


def cancel(flux: Flux, args: Namespace) -> int:
    from mpiflux.client import plans

    if bool(args.ids) + args.all + (args.filter is not None) != 1:
        raise Trouble("which jobs? Give their ids, or --filter, or --all")
    if args.all:
        n = flux.cancel(reason=args.reason)
    elif args.filter is not None:
        ids, states = _filtered(flux, args.filter)
        n = flux.cancel(ids, reason=args.reason, states=states)
    else:
        n = flux.cancel([job for ref in args.ids for job in flux._do(plans.resolve(ref))], reason=args.reason)
    say(f"{n} job{'s' * (n != 1)} cancelled")
    return 0 if n else 1


def _filtered(flux: Flux, text: str) -> tuple[list[int] | None, list[str]]:
    """Ids (None: all) and states. Raises Trouble."""
    from mpiflux.cli.rundir import STATES, split
    from mpiflux.model.states import State
    from mpiflux.store.reader import RunError, open_run

    flux.sync()
    ids: set[int] | None = None
    states: set[int] = set()
    with open_run(flux.run_dir) as reader:
        for word in split(text):
            if word.lower() in STATES:
                states.update(STATES[word.lower()])
                continue
            try:
                ids = (ids or set()) | set(reader.resolve(word))
            except RunError as error:
                raise Trouble(f"--filter: {word!r} is no state, name or id of this run ({error})") from None
    return None if ids is None else sorted(ids), [State(state).name for state in sorted(states)]


def _urgency_options(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="jobs: 12, sim.3, or sim for all of a name")
    parser.add_argument("urgency", metavar="N", type=_urgency, help="0 to 31, or hold (0), default (16), expedite (31)")


def _urgency(text: str) -> int:
    named = {"hold": 0, "default": 16, "expedite": 31}
    value = named.get(text, int(text) if text.isascii() and text.isdigit() and len(text) < 3 else -1)
    if not 0 <= value <= 31:
        raise ArgumentTypeError(f"{text!r} is neither a number from 0 to 31 nor one of {', '.join(named)}")
    return value


def urgency(flux: Flux, args: Namespace) -> int:
    from mpiflux.client import plans

    n = flux.urgency(flux._do(plans.resolve(args.id)), args.urgency)
    what = f"ha{'ve' if n != 1 else 's'} urgency {args.urgency} now" if args.urgency else "held"
    say(f"{n} job{'s' * (n != 1)} {what}" if n else f"{args.id}: everything has started")
    return 0 if n else 1


def _event_options(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="of this job id or name only (default: all jobs)")
    parser.add_argument("--names", metavar="LIST", default="", help="these events only: start,clean")
    parser.add_argument("--since", metavar="N", type=natural, default=0, help="go on from event N (default: the start)")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")


def events(flux: Flux, args: Namespace) -> None:
    names = tuple(filter(None, args.names.split(",")))
    if args.name is not None:
        from mpiflux.client.errors import NoJob

        try:
            flux.group(args.name)
        except NoJob:
            tell(f"mpiflux: no jobs are called {args.name!r} so far")
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


_GATES: dict[str, dict[str, bool]] = {
    "status": {}, "enable": {"enabled": True}, "disable": {"enabled": False}, "start": {"started": True},
    "stop": {"started": False}}


def _queue_options(parser: Parser) -> None:
    parser.add_argument("action", metavar="ACTION", nargs="?", default="list", choices=("list", *_GATES, "drain"),
                        help="of jobs: status, disable and enable (submitting), stop and start (starting them), drain "
                             "(wait until none is left); of messages: list (the default)")
    parser.add_argument("-m", "--message", metavar="TEXT", default="", help="why it is disabled or stopped")
    _json_option(parser)


def queue(flux: Flux, args: Namespace) -> None:
    if args.action == "drain":
        flux.wait()
    elif args.action in _GATES:
        found = flux.gate(**_GATES[args.action], reason=args.message)
        if args.json:
            say(json.dumps(found))
            return
        say(f"submitting is {'enabled' if found['enabled'] else 'disabled'}, "
            f"starting is {'on' if found['started'] else 'stopped'}{': ' * bool(found['reason'])}{found['reason']}")
    else:
        _message_queues(flux, args)


def _message_queues(flux: Flux, args: Namespace) -> None:
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
    "cancel": (_cancel_options, cancel), "job cancel": (_cancel_options, cancel),
    "job urgency": (_urgency_options, urgency),
    "events": (_event_options, events), "kvs put": (_put_options, put), "kvs rm": (_rm_options, rm),
    "kvs watch": (_watch_options, watch), "pub": (_pub_options, pub), "sub": (_sub_options, sub),
    "queue": (_queue_options, queue), "uptime": (_json_option, uptime),
}
