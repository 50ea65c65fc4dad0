"""``kvs get`` and ``kvs ls``."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpiflux.cli.console import say, write_bytes
from mpiflux.cli.parser import Parser
from mpiflux.cli.rundir import Trouble, add_directory, add_namespace, answered, is_run, reading, swap

if TYPE_CHECKING:
    from mpiflux.client.names import Names


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    if name == "kvs get":
        parser.examples("mpiflux kvs get job.12.stdout runs/first", "mpiflux kvs get job.sim.3.R runs/first --json")
        parser.add_argument("key", metavar="KEY", help="names joined by dots; jobs are below job.ID and job.NAME.INDEX")
        add_directory(parser)
        parser.add_argument("--json", action="store_true", help="the value as JSON, also a text; bytes as a text")
        function: object = get
    else:
        parser.examples("mpiflux kvs ls runs/first", "mpiflux kvs ls job.12 runs/first")
        parser.add_argument("key", metavar="PREFIX", nargs="?", default="", help="list only what is below this")
        add_directory(parser)
        parser.add_argument("-R", "--recursive", action="store_true", help="also what is in directories")
        parser.add_argument("--json", action="store_true", help="a JSON list")
        function = ls

    add_namespace(parser)

    def handler(args: Namespace) -> int:
        swap(args, "key")
        if name == "kvs ls" and args.directory is None and not args.run_dir and (is_run(args.key) or "/" in args.key):
            args.directory, args.key = args.key, ""
        return answered(args, function)

    return handler


def _names(args: Namespace) -> Names:
    from mpiflux.client.names import Names, checked, inherited

    try:
        return Names(inherited() if args.namespace is None else checked(args.namespace))
    except ValueError as error:
        raise Trouble(str(error)) from None


def get(args: Namespace) -> None:
    from mpiflux.store.kvs import KvsError

    with reading(args) as reader:
        try:
            value = reader.kvs_get(_names(args).full(args.key))
        except KvsError as error:
            raise Trouble(str(error), 1) from None
    if isinstance(value, bytes):
        if not args.json:
            write_bytes(value)
            return
        value = value.decode("utf-8", "surrogateescape")
    say(value if isinstance(value, str) and not args.json else json.dumps(value))


def ls(args: Namespace) -> None:
    from mpiflux.store.kvs import KvsError

    with reading(args) as reader:
        try:
            names = _names(args)
            keys = [names.short(key) for key in reader.kvs_ls(names.full(args.key), recursive=args.recursive)]
        except KvsError as error:
            raise Trouble(str(error), 1) from None
    if args.json:
        say(json.dumps(keys))
    elif keys:
        say("\n".join(keys))
