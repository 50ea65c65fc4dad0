"""Named resources: what the instance and its nodes have, and amounts of them."""

from __future__ import annotations

import re

from mpiflux.spec.nodes import Node
from mpiflux.spec.problems import shorten
from mpiflux.spec.reader import Reader
from mpiflux.spec.scalars import as_int, as_size

MAX_AMOUNT = 1 << 53
_NAME = re.compile(r"[^\W\d][\w-]*")
BUILT_IN = ("tasks", "cores", "gpus", "nodes", "exclusive", "memory", "layout")
"""Resources with a meaning of their own."""


def read_amount(reader: Reader, node: Node | None, path: str) -> int:
    """A whole number, or a size such as ``100GB``."""
    what = "a whole number, or a size such as 100GB"
    scalar = reader.scalar(node, path, what)
    if scalar is None:
        return 0
    name = path.rpartition(".")[2]
    value = parse_amount(scalar.text)
    if value is None:
        reader.problem(scalar, path, f"{name}: expected {what}, not {scalar.describe()}")
    elif not 0 <= value <= MAX_AMOUNT:
        reader.problem(scalar, path, f"{name}: {scalar.describe()} is out of range; it must be at least 0, at most "
                       f"{MAX_AMOUNT:,}")
    else:
        return value
    return 0


def parse_amount(text: str) -> int | None:
    """``10``, ``1e6``, ``100GB``; None when it is neither."""
    value = as_int(text)
    bare = text.strip().replace(".", "").isdigit()
    return as_size(text) if value is None and not bare else value


def read_supplies(reader: Reader, node: Node | None, path: str) -> tuple[dict[str, int], dict[str, int]]:
    """The key ``resources`` of a workflow: (of the whole instance, of each node)."""
    fields = reader.fields(node, path, ("instance", "node"), "resources")
    if fields is None:
        return {}, {}
    instance, each = (_named(reader, *fields.get(key)) for key in ("instance", "node"))
    for name in instance.keys() & each.keys():
        reader.problem(fields.node_of("node"), f"{path}.node.{name}", f"resources: {shorten(name)} is the instance's "
                       "and the nodes'; give it once")
    return instance, each


def _named(reader: Reader, node: Node | None, path: str) -> dict[str, int]:
    fields = reader.fields(node, path, (), "resources", open_ended=True)
    if fields is None:
        return {}
    found: dict[str, int] = {}
    for name, (key, value) in fields.node.entries.items():
        where = f"{path}.{name}"
        if name in BUILT_IN:
            reader.problem(key, where, f"resources: {shorten(name)} is found out from the machine; name others, "
                           "such as license or burst_buffer")
        elif not _NAME.fullmatch(name):
            reader.problem(key, where, f"{shorten(name)} cannot name a resource: use letters, digits, '_' and '-'")
        else:
            found[name] = read_amount(reader, value, where)
    return found
