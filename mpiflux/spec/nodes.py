"""The document as a tree of nodes that know their place.

PyYAML is used for its event stream only: libyaml's scanner is fast, and composing here, without recursion, lets
hostile files end in a message. What PyYAML's own composer would let through is refused: duplicate keys, aliases
that expand without bound or contain themselves, deep nesting, tags that would build Python objects.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mpiflux.spec.problems import Problems, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 100
MAX_WEIGHT = 1_000_000
"""Nodes (and thousands of characters) that a file may expand to by aliases, when it is far more than it holds."""

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = {"!": False, _TAG + "str": False, _TAG + "int": True, _TAG + "float": True, _TAG + "bool": True,
                _TAG + "null": True}
"""Tag to whether the text is resolved as if it were plain."""


_NO_ITEMS: list[Node] = []
_NO_ENTRIES: dict[str, tuple[Node, Node]] = {}
"""Shared by all scalars: a file of a million values would keep the garbage collector busy with empty ones."""


class Node:
    """One value of the document. ``kind`` is ``scalar``, ``list`` or ``mapping``."""

    __slots__ = ("column", "end", "entries", "items", "kind", "line", "merged", "plain", "source", "start",
                 "text", "weight")

    def __init__(self, kind: str, line: int = 0, column: int = 0, *, text: str = "", plain: bool = False,
                 start: int = 0, end: int = 0, source: str = "") -> None:
        self.kind, self.line, self.column = kind, line, column
        self.text, self.plain = text, plain
        """Of a scalar: its text, and whether it may be a number or a truth value (it was not quoted)."""
        self.start, self.end = start, end
        """Offsets in the file's text."""
        self.source = source
        """Set when the node comes from an option instead of the file."""
        self.items: list[Node] = [] if kind == "list" else _NO_ITEMS
        self.entries: dict[str, tuple[Node, Node]] = {} if kind == "mapping" else _NO_ENTRIES
        """Of a mapping: key text to (key, value), in the file's order."""
        self.weight = 1
        self.merged: frozenset[str] = frozenset()
        """Of a mapping: keys that came by ``<<``, which it may still give itself."""

    @property
    def is_empty(self) -> bool:
        """Nothing stands there: ``key:`` with no value."""
        return self.kind == "scalar" and self.plain and self.text == ""

    def copy(self) -> Node:
        """A node of the same place with the same children, to change without changing this one."""
        node = Node(self.kind, self.line, self.column, text=self.text, plain=self.plain, start=self.start, end=self.end,
                    source=self.source)
        node.items, node.entries, node.weight = list(self.items), dict(self.entries), self.weight
        return node

    def children(self) -> Iterator[Node]:
        """The values of a list or mapping."""
        yield from self.items
        for _, value in self.entries.values():
            yield value

    def describe(self) -> str:
        """What this is, for a message."""
        if self.kind == "list":
            return "a list"
        if self.kind == "mapping":
            return "a mapping"
        return "nothing" if self.is_empty else shorten(self.text)


class Refused(Exception):
    """The document cannot be read further; the problem has been noted."""


def decode(data: bytes, problems: Problems) -> str:
    """The text of a file: UTF-8, or UTF-16 with its byte order mark. Raises :class:`Refused`."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[:error.start].decode(encoding, "replace")
        line, column = position(before, len(before))
        problems.add(line, column, f"not a text file: byte 0x{data[error.start]:02x} is not valid "
                     f"{encoding.removesuffix('-sig').upper()}")
        raise Refused from None
    bad = _UNPRINTABLE.search(text)
    if bad:
        line, column = position(text, bad.start())
        problems.add(line, column, f"not a text file: it contains the control character U+{ord(bad.group()):04X}")
        raise Refused
    return text


def position(text: str, offset: int) -> tuple[int, int]:
    """Line and column, from 1, of an offset."""
    start = text.rfind("\n", 0, offset) + 1
    return text.count("\n", 0, offset) + 1, offset - start + 1


def compose(text: str, problems: Problems) -> Node:
    """The only document of a YAML text. Raises :class:`Refused` when there is none that can be used."""
    import yaml  # here and not above: who checks no file need not load it

    # without libyaml PyYAML's own parser gives the same events, slower
    parser_type: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    composer = _Composer(problems)
    try:
        parser = parser_type(text)
        while parser.check_event():
            composer.feed(parser.get_event())
    except yaml.MarkedYAMLError as error:
        _malformed(error, text, problems)
        raise Refused from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        problems.add(1, 1, f"not readable as YAML: {shorten(str(error), 200)}")
        raise Refused from None
    if composer.root is None or composer.root.is_empty:
        problems.add(1, 1, "the file is empty; a workflow needs at least 'jobs:' with one job")
        raise Refused
    return composer.root


def _malformed(error: Any, text: str, problems: Problems) -> None:
    line, column = _place(error.problem_mark or error.context_mark, text)
    message = f"malformed YAML: {error.problem or 'cannot be read'}"
    if error.context:
        start = f" that starts in line {_place(error.context_mark, text)[0]}" if error.context_mark else ""
        message += f" ({error.context}{start})"
    lines = text.split("\n")
    if line <= len(lines):
        source = lines[line - 1]
        if re.search(r"(?<![\"'])\$\{", source):
            message += "; inside { } and [ ] write \"${name}\" with quotes"
        elif "\t" in source[:len(source) - len(source.lstrip())]:
            message += "; indent with spaces, YAML takes no tabs"
        elif re.search(r":\s*\{\w+\}", source):
            message += "; a text that starts with { needs quotes"
    problems.add(line, column, message)


def _place(mark: Any, text: str) -> tuple[int, int]:
    """Line and column of a parser's mark; at the end of the text it counts a line that is not there."""
    if mark is None:
        return 1, 1
    return position(text, len(text)) if mark.index >= len(text) else (mark.line + 1, mark.column + 1)


class _Composer:
    """Builds nodes from events, with a stack of its own instead of recursion."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.root: Node | None = None
        self.stack: list[tuple[Node, Node | None]] = []
        """Open collections, each with the key that waits for its value."""
        self.anchors: dict[str, Node] = {}
        self.open: set[int] = set()
        self.held = 0
        """Weight of what the file itself holds."""
        self.merged = 0
        self.at = (1, 1)

    def feed(self, event: Any) -> None:
        """Take the next event of the parser."""
        self.at = event.start_mark.line + 1, event.start_mark.column + 1
        name = type(event).__name__
        if name == "ScalarEvent":
            self._scalar(event)
        elif name in ("SequenceStartEvent", "MappingStartEvent"):
            self._open(event, "list" if name == "SequenceStartEvent" else "mapping")
        elif name in ("SequenceEndEvent", "MappingEndEvent"):
            self._close(event)
        elif name == "AliasEvent":
            self._alias(event)
        elif name == "DocumentStartEvent" and self.root is not None:
            self._stop(event, "a second document starts here; a workflow is one document, so remove this '---' "
                              "or what follows")

    def _stop(self, event: Any, message: str) -> None:
        self.problems.add(event.start_mark.line + 1, event.start_mark.column + 1, message)
        raise Refused

    def _node(self, event: Any, kind: str, **more: Any) -> Node:
        start, end = event.start_mark, event.end_mark
        node = Node(kind, start.line + 1, start.column + 1, start=start.index, end=end.index, **more)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _scalar(self, event: Any) -> None:
        plain = bool(event.implicit[0]) and not event.style
        if event.tag is not None:
            if event.tag in _SCALAR_TAGS:
                plain = _SCALAR_TAGS[event.tag]
            else:
                self._tag(event)
        node = self._node(event, "scalar", text=event.value, plain=plain)
        node.weight = 1 + len(event.value) // 1000
        self.held += node.weight
        if "\0" in event.value:
            self.problems.add(node.line, node.column, "a text with a NUL character cannot be passed to a program")
            node.text = node.text.replace("\0", "")
        self._add(node)

    def _tag(self, event: Any) -> None:
        self.problems.add(event.start_mark.line + 1, event.start_mark.column + 1,
                          f"the tag {shorten(event.tag)} is refused: a workflow holds plain data only; remove it")

    def _open(self, event: Any, kind: str) -> None:
        if event.tag not in (None, "!", _TAG + "seq", _TAG + "map"):
            self._tag(event)
        if len(self.stack) >= MAX_DEPTH:
            self._stop(event, f"nested deeper than {MAX_DEPTH} levels")
        node = self._node(event, kind)
        self.held += 1
        self.stack.append((node, None))
        self.open.add(id(node))

    def _close(self, event: Any) -> None:
        node, _ = self.stack.pop()
        self.open.discard(id(node))
        node.end = event.end_mark.index
        self._add(node)

    def _alias(self, event: Any) -> None:
        node = self.anchors.get(event.anchor)
        if node is None:
            self._stop(event, f"*{event.anchor} names no anchor: no &{event.anchor} comes before it")
            return
        if id(node) in self.open:
            self._stop(event, f"*{event.anchor} stands inside what it names")
        self._add(node)

    def _add(self, node: Node) -> None:
        if not self.stack:
            self.root = node
            return
        parent, key = self.stack[-1]
        if parent.kind == "list":
            parent.items.append(node)
            parent.weight += node.weight
        elif key is None:
            self.stack[-1] = (parent, node)
        else:
            self.stack[-1] = (parent, None)
            self._entry(parent, key, node)
        self._limit(parent)

    def _limit(self, node: Node) -> None:
        if node.weight > max(MAX_WEIGHT, 4 * self.held):
            self.problems.add(*self.at, f"aliases make this file expand to more than {MAX_WEIGHT:,} values; this "
                              "is refused because it would fill the memory")
            raise Refused

    def _entry(self, parent: Node, key: Node, value: Node) -> None:
        parent.weight += 1 + value.weight
        if key.kind != "scalar":
            self.problems.add(key.line, key.column, f"a key must be a text, not {key.describe()}; "
                              "quote it if it starts with a brace or bracket")
        elif key.plain and key.text == "<<":
            self._merge(parent, key, value)
        elif key.text in parent.entries and key.text not in parent.merged:
            old = parent.entries[key.text][0]
            self.problems.add(key.line, key.column, f"the key {shorten(key.text)} is there twice; "
                              f"it was first given in line {old.line}")
        else:
            parent.entries[key.text] = (key, value)
            if parent.merged:
                parent.merged -= {key.text}

    def _merge(self, parent: Node, key: Node, value: Node) -> None:
        """YAML's ``<<: *base``: keys of the base that the mapping does not give itself."""
        for base in value.items if value.kind == "list" else [value]:
            if base.kind != "mapping":
                self.problems.add(key.line, key.column, f"'<<' merges a mapping, not {base.describe()}")
                continue
            self.merged += len(base.entries)
            if self.merged > MAX_WEIGHT:
                self.problems.add(key.line, key.column, f"'<<' merges more than {MAX_WEIGHT:,} keys in this file")
                raise Refused
            new = {name: entry for name, entry in base.entries.items() if name not in parent.entries}
            parent.entries.update(new)
            parent.merged |= new.keys()
