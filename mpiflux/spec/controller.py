"""``controller:``: the program that steers a workflow, a list of arguments or a text that is split into words."""

from __future__ import annotations

import shlex

from mpiflux.spec.nodes import Node
from mpiflux.spec.reader import Reader

MAX_TEXT = 1 << 16
"""Characters of a text that is to be split: shlex takes quadratic time for a long word."""


def read_controller(reader: Reader, node: Node | None, path: str) -> tuple[str, ...]:
    """Its arguments, as they stand; empty where there is none."""
    if node is None:
        return ()
    if node.kind == "list":
        argv = tuple(reader.text(item, f"{path}[{i}]", "", "an argument") for i, item in enumerate(node.items))
    else:
        text = reader.text(node, path, "", "a text or a list of arguments")
        try:
            if len(text) > MAX_TEXT:
                raise ValueError(f"more than {MAX_TEXT:,} characters; write a list")
            argv = tuple(shlex.split(text))
        except ValueError as error:
            reader.problem(node, path, f"controller: cannot be split into words: {str(error).lower()}")
            return ()
    if not argv or not argv[0]:
        reader.problem(node, path, "controller: names no program")
    if any("\0" in word for word in argv):
        reader.problem(node, path, "controller: a zero byte in an argument")
    return argv
