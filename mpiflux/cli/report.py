"""``report``: what a run came to, as a page and a picture."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable

from mpiflux.cli.console import tell
from mpiflux.cli.parser import Parser
from mpiflux.cli.rundir import Trouble, add_directory, answered, find, reading


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples("mpiflux report runs/first", "mpiflux report runs/first --output first.html")
    add_directory(parser)
    parser.add_argument("-o", "--output", metavar="FILE.html",
                        help="write there, and the picture beside it as FILE.png (default: report.html in the run "
                             "directory)")
    return lambda args: answered(args, report)


def report(args: Namespace) -> None:
    from mpiflux.report.digest import digest
    from mpiflux.report.page import page, picture

    with reading(args) as reader:
        found = digest(reader, os.path.abspath(find(args)))
    path = args.output or os.path.join(found.directory, "report.html")
    try:
        image = picture(found)
    except ImportError:
        image = None
    written = [(path, page(found, image).encode("utf-8", "replace"))]
    if image is not None:
        written.append((f"{os.path.splitext(path)[0]}.png", image))
    for name, data in written:
        try:
            with open(name, "wb") as file:
                file.write(data)
        except OSError as error:
            raise Trouble(f"{name}: cannot be written: {error.strerror}; choose another place by --output", 1) from None
    tell(" and ".join(name for name, _ in written))
    if image is None:
        tell("without a picture, as Matplotlib is not there (pip install 'mpiflux[plot]')")
