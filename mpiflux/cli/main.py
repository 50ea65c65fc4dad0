"""From the command line to the module of its command."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

from mpiflux.cli.console import Gone, Unwritable, open_all, tell, write
from mpiflux.cli.parser import Parser, fail, spoken_for, suggestion
from mpiflux.instance.early import held

COMMANDS = {
    # command       module        what it does
    "run":          ("run",       "run a workflow to the end"),
    "start":        ("start",     "run a program that steers: an instance with an initial program"),
    "validate":     ("validate",  "say everything that is wrong with a workflow file"),
    "jobs":         ("jobs",      "list the jobs of a run"),
    "job show":     ("job",       "all that is known of one job"),
    "job eventlog": ("job",       "what happened to a job, and when"),
    "job attach":   ("attach",    "follow a job's output as it comes, and pass stdin and signals on to it"),
    "job kill":     ("attach",    "send a signal to jobs"),
    "job wait":     ("job",       "wait until jobs have ended; the exit status is theirs"),
    "kvs get":      ("kvs",       "print the value of a key"),
    "kvs ls":       ("kvs",       "list keys"),
    "resources":    ("resources", "nodes, cores and GPUs of a run, and what of them is in use"),
    "tree":         ("resources", "the tree of schedulers and what each owns"),
    "simulate":     ("simulate",  "run the schedulers on a virtual cluster and clock"),
    "doctor":       ("doctor",    "say what mpiflux finds here, and what looks wrong"),
    "top":          ("top",       "a live view of a run"),
    "report":       ("report",    "a page and a picture of what a run came to"),
    "export":       ("export",    "the table of jobs as CSV, JSON or Parquet"),
    "submit":       ("submit",    "hand jobs to a live instance"),
    "bulksubmit":   ("submit",    "a job for each of many inputs, as GNU parallel takes them"),
    "cancel":       ("live",      "end jobs of a live instance"),
    "job cancel":   ("live",      "the same"),
    "job urgency":  ("live",      "give jobs that wait another urgency, hold them, or let them go"),
    "events":       ("live",      "follow what happens to jobs"),
    "kvs put":      ("live",      "set a key"),
    "kvs rm":       ("live",      "remove a key"),
    "kvs watch":    ("live",      "follow changes of keys"),
    "pub":          ("live",      "publish a message"),
    "sub":          ("live",      "print messages as they come"),
    "queue":        ("live",      "stop or start the queue of jobs; list those of messages"),
    "uptime":       ("live",      "how long an instance has been up, and what it does"),
}

RANKS = ("run", "start")
"""Commands whose process may be a rank."""

GROUPS = ("job", "kvs")
"""First words that want a second one."""

_FILES = (".yaml", ".yml", ".json")
_PIPE = 141
"""128 + SIGPIPE, as of any program whose reader left."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    open_all()
    try:
        handler, args = parse(sys.argv[1:] if argv is None else argv)
        return handler(args)
    except Gone:
        return _PIPE
    except BrokenPipeError:
        return _PIPE
    except Unwritable as error:
        tell(f"mpiflux: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0 if leave.code is None else 2


def parse(argv: Sequence[str]) -> tuple[Callable[[Namespace], int], Namespace]:
    """What to call, and with what. A wrong line, or ``--help``, raises SystemExit."""
    words = list(argv)
    if not words or words[0] in ("-h", "--help", "help"):
        if not spoken_for():
            write(overview())
        raise SystemExit(0 if words else 2)
    if words[0] in ("-V", "--version"):
        from mpiflux import __version__

        write(f"mpiflux {__version__}\n")
        raise SystemExit(0)
    before = _run_dir(words)
    name, rest = _command(words[len(before):])
    if name not in RANKS:
        held.release()
    rest = before + rest
    module_name, description = COMMANDS[name]
    parser = Parser(f"mpiflux {name}", description[0].upper() + description[1:] + ".", once=name in ("run", "start"))
    # by name, so that a command loads no other command's module
    module = __import__(f"mpiflux.cli.{module_name}", fromlist=["define"])
    handler: Callable[[Namespace], int] = module.define(name, parser)
    args = parser.parse(rest)
    args.parser = parser
    return handler, args


def _run_dir(words: list[str]) -> list[str]:
    """``--run-dir DIR`` before the command, the one option that may stand there."""
    n = 2 if words[0] == "--run-dir" else 1 if words[0].startswith("--run-dir=") else 0
    return words[:n] if len(words) > n else []


def _command(words: list[str]) -> tuple[str, list[str]]:
    """The command's name and its arguments."""
    first = words[0]
    known = list(COMMANDS)
    if first in GROUPS:
        second = words[1] if len(words) > 1 else "--help"
        actions = [name.split()[1] for name in known if name.startswith(first + " ")]
        if second in ("-h", "--help"):
            write(_group_help(first))
            raise SystemExit(0 if len(words) > 1 else 2)
        if second not in actions:
            fail(f"there is no command '{first} {second}'"
                 f"{suggestion(second, actions) or '; there are: ' + ', '.join(actions)}")
        name, rest = f"{first} {second}", words[2:]
    elif first in known:
        name, rest = first, words[1:]
    elif first.endswith(_FILES) or os.path.isfile(first):
        return "run", words
    elif first.startswith("-"):
        fail(f"options but --run-dir DIR stand after the command, as in `mpiflux run {first} …`", once=True)
    else:
        singles = list(dict.fromkeys(command.split()[0] for command in known))
        fail(f"there is no command {first!r}, and no such workflow file{suggestion(first, singles)}\n"
             "try `mpiflux --help`", once=True)
    return name, rest


def overview() -> str:
    """The text of ``mpiflux --help``."""
    lines = ["usage: mpiflux COMMAND …        (the same: python -m mpiflux COMMAND …)",
             "       mpiflux WORKFLOW.yaml …  (the same: mpiflux run WORKFLOW.yaml …)",
             "       mpiflux --run-dir DIR COMMAND …  (the same: mpiflux COMMAND --run-dir DIR …)", "",
             "Run workflows of up to a million short programs inside one MPI program.", ""]
    width = max(map(len, COMMANDS)) + 2
    lines += [f"  {name:<{width}}{text}" for name, (_, text) in COMMANDS.items()]
    lines += ["",
              "`mpiflux COMMAND --help` says more and has examples; `mpiflux --version` prints the version.", "",
              "example:", "  mpiexec -n 4 mpiflux workflow.yaml --run-dir runs/first", "  mpiflux jobs runs/first", ""]
    return "\n".join(lines)


def _group_help(first: str) -> str:
    chosen = {name: text for name, (_, text) in COMMANDS.items() if name.startswith(first + " ")}
    width = max(map(len, chosen)) + 2
    example = {"job": "mpiflux job show 12 runs/first", "kvs": "mpiflux kvs ls job.12 runs/first"}[first]
    return "\n".join([f"usage: mpiflux {first} ACTION …", "",
                      *(f"  {name:<{width}}{text}" for name, text in chosen.items()),
                      "", "example:", f"  {example}", ""])


__all__ = ["COMMANDS", "GROUPS", "main", "overview", "parse"]
