"""JSON as the same nodes that YAML gives.

JSON is nearly a subset of YAML, but not of what YAML 1.1 readers take: tabs as white space, surrogate pairs in
escapes and long keys. So files named ``.json`` are read here, by the rules of RFC 8259, keeping positions.
"""

from __future__ import annotations

import json
import re
from typing import NoReturn

from mpiflux.spec.nodes import MAX_DEPTH, Node, Refused, position
from mpiflux.spec.problems import Problems

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_WORD = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null", re.ASCII)


def compose_json(text: str, problems: Problems) -> Node:
    """The value of a JSON text. Raises :class:`Refused` when it is malformed."""
    return _Reader(text, problems).document()


class _Reader:
    def __init__(self, text: str, problems: Problems) -> None:
        self.text, self.problems = text, problems
        self.at = 0
        self.line, self.line_start, self.counted = 1, 0, 0

    def document(self) -> Node:
        self._space()
        if self.at == len(self.text):
            self._fail("the file is empty; a workflow needs at least 'jobs' with one job")
        root = self._value()
        stack: list[tuple[Node, Node | None]] = [(root, None)] if root.kind != "scalar" else []
        while stack:
            parent, _ = stack[-1]
            if self._closed(parent):
                stack.pop()
                continue
            key = self._key(parent) if parent.kind == "mapping" else None
            node = self._value()
            if key is None:
                parent.items.append(node)
            elif key.text in parent.entries:
                first = parent.entries[key.text][0]
                self.problems.add(key.line, key.column, f"the key {key.text!r} is there twice; it was first given "
                                  f"in line {first.line}")
            else:
                parent.entries[key.text] = (key, node)
            if node.kind != "scalar":
                if len(stack) >= MAX_DEPTH:
                    self.at = node.start
                    self._fail(f"nested deeper than {MAX_DEPTH} levels")
                stack.append((node, key))
        self._space()
        if self.at < len(self.text):
            self._fail("malformed JSON: something follows after the end")
        return root

    def _closed(self, parent: Node) -> bool:
        """Step over the end of a collection, or over the comma before its next item."""
        self._space()
        end = "]" if parent.kind == "list" else "}"
        empty = not parent.items and not parent.entries
        if self.text.startswith(end, self.at):
            self.at += 1
            parent.end = self.at
            return True
        if not empty:
            if not self.text.startswith(",", self.at):
                self._fail(f"malformed JSON: expected ',' or '{end}'")
            self.at += 1
            self._space()
        return False

    def _key(self, parent: Node) -> Node:
        if not self.text.startswith('"', self.at):
            self._fail("malformed JSON: expected a key in double quotes")
        key = self._value()
        self._space()
        if not self.text.startswith(":", self.at):
            self._fail("malformed JSON: expected ':' after the key")
        self.at += 1
        self._space()
        return key

    def _value(self) -> Node:
        """A scalar, or the opened collection that starts here."""
        start = self.at
        line, column = self._position(start)
        first = self.text[start:start + 1]
        if first in ("[", "{") and first:
            self.at += 1
            return Node("list" if first == "[" else "mapping", line, column, start=start, end=start)
        if first == '"':
            value = self._string()
            if any("\ud800" <= c <= "\udfff" for c in value):
                self._fail("malformed JSON: an escape for half a character")
            if "\0" in value:
                self.problems.add(line, column, "a text with a NUL character cannot be passed to a program")
                value = value.replace("\0", "")
            return Node("scalar", line, column, text=value, start=start, end=self.at)
        match = _WORD.match(self.text, start)
        if not match:
            self._fail("malformed JSON: expected a value")
        self.at = match.end()
        return Node("scalar", line, column, text=match.group(), plain=True, start=start, end=self.at)

    def _string(self) -> str:
        match = _STRING.match(self.text, self.at)
        try:
            if match is None:
                raise ValueError
            value = str(json.loads(match.group()))
        except ValueError:
            self._fail("malformed JSON: a text that does not end on its line, or holds a bad escape")
        else:
            self.at = match.end()
            return value

    def _space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        if match:
            self.at = match.end()

    def _position(self, offset: int) -> tuple[int, int]:
        """Line and column; offsets only grow, so each line is counted once."""
        newlines = self.text.count("\n", self.counted, offset)
        if newlines:
            self.line += newlines
            self.line_start = self.text.rfind("\n", 0, offset) + 1
        self.counted = offset
        return self.line, offset - self.line_start + 1

    def _fail(self, message: str) -> NoReturn:
        line, column = position(self.text, self.at)
        self.problems.add(line, column, message)
        raise Refused
