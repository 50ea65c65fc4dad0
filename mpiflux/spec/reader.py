"""Typed values out of nodes, each mistake noted where it stands.

Every method takes the node (None when the key is absent), its path for messages, and a default that is returned when
the node is absent or wrong, so that the builders read on and find the next mistake too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from itertools import islice

from mpiflux.model import template
from mpiflux.model.jobspec import Place
from mpiflux.spec import scalars
from mpiflux.spec.nodes import Node, position
from mpiflux.spec.problems import Problems, shorten
from mpiflux.spec.variables import REFERENCE

MOST_IN_A_TEXT = 100
"""Braces out of place and unknown names that are told of one text: a program in a language with braces is full of them.
"""
_SHELL_REFERENCE = re.compile(r"\$\{([^{}]*)\}")


class Fields:
    """The entries of a mapping with known keys."""

    def __init__(self, node: Node, path: str) -> None:
        self.node, self.path = node, path

    def __contains__(self, key: str) -> bool:
        return key in self.node.entries

    def get(self, key: str) -> tuple[Node | None, str]:
        """(value or None, path): the first two arguments of every method of :class:`Reader`."""
        entry = self.node.entries.get(key)
        return (entry[1] if entry is not None else None), f"{self.path}.{key}"

    def node_of(self, key: str) -> Node:
        """The value of a key that is there, else the mapping: a place for a message."""
        entry = self.node.entries.get(key)
        return entry[1] if entry is not None else self.node


class Reader:
    def __init__(self, problems: Problems, text: str = "", variables: Collection[str] = ()) -> None:
        self.problems = problems
        self.source_text = text
        self.variables = variables
        self.directory = ""
        """Absolute directory of the workflow file; empty for a text that is none."""
        self.places: dict[str, Place] = {}
        """Where stands what only a machine can find wrong; see :attr:`mpiflux.model.jobspec.Workflow.places`."""

    @cached_property
    def installed_policies(self) -> list[str]:
        """Policies that installed packages offer."""
        from importlib.metadata import entry_points  # reads many small files: only for a name that is not known

        return sorted(point.name for point in entry_points(group="mpiflux.policies"))

    def remember(self, what: str, node: Node) -> None:
        """Note where ``what`` stands first."""
        self.places.setdefault(what, Place(node.source or self.problems.source, node.line, node.column))

    def problem(self, node: Node, path: str, message: str) -> None:
        """Note a mistake at a node."""
        self.problems.add(node.line, node.column, message, path, node.source)

    def problem_in(self, node: Node, path: str, message: str, snippet: str, before: int) -> None:
        """Note a mistake inside a scalar: at the occurrence of ``snippet`` that has ``before`` others before it.

        Looking the snippet up in the source holds for every way YAML has of writing a text.
        """
        place = node.start
        for _ in range(before + 1):
            place = self.source_text.find(snippet, place, node.end)
            if place < 0:
                break
            place += 1
        if place < 0 or node.source or not snippet:
            self.problem(node, path, message)
        else:
            line, column = position(self.source_text, place - 1)
            self.problems.add(line, column, message, path)

    def fields(self, node: Node | None, path: str, known: Iterable[str], what: str, *,
               open_ended: bool = False) -> Fields | None:
        """A mapping; keys that are not ``known`` are mistakes unless ``open_ended``."""
        if node is None:
            return None
        if node.kind != "mapping":
            self.problem(node, path, f"{what}: expected a mapping of keys to values, not {node.describe()}")
            return None
        known = tuple(known)
        if not open_ended:
            for name, (key, _) in node.entries.items():
                if name not in known:
                    hint = self.problems.suggest(name, known) or f"; known keys: {', '.join(known)}"
                    self.problem(key, f"{path}.{name}", f"{what} has no key {shorten(name)}{hint}")
        return Fields(node, path)

    def scalar(self, node: Node | None, path: str, what: str) -> Node | None:
        """A single value whose variables are all known."""
        if node is None:
            return None
        name = path.rpartition(".")[2]
        if node.kind != "scalar":
            self.problem(node, path, f"{name}: expected {what}, not {node.describe()}")
            return None
        unknown = list(REFERENCE.finditer(node.text)) if "${" in node.text else []
        for match in unknown:
            self._undefined_variable(node, path, match)
        return None if unknown else node

    def _undefined_variable(self, node: Node, path: str, match: re.Match[str]) -> None:
        name = match.group(1)
        hint = self.problems.suggest(name, self.variables) or ("; declared: " + ", ".join(list(self.variables)[:10])
                                                 if self.variables else "; the file declares none")
        self.problem_in(node, path, f"${{{name}}}: there is no variable {name!r} (environment variables are "
                        f"expanded only by a shell, see 'shell: true'){hint}", match.group(),
                        node.text.count(match.group(), 0, match.start()))

    def text(self, node: Node | None, path: str, default: str = "", what: str = "a text") -> str:
        """A scalar as it stands in the file: ``1``, ``yes`` and ``"1"`` alike are texts."""
        scalar = self.scalar(node, path, what)
        if scalar is None:
            return default
        if scalar.is_empty:
            self.problem(scalar, path, f"{path.rpartition('.')[2]}: expected {what}, but nothing is there; "
                         "write \"\" for an empty text")
            return default
        return scalar.text

    def choice(self, node: Node | None, path: str, default: str, options: Collection[str]) -> str:
        """One of some words."""
        listed = " or ".join([", ".join(list(options)[:-1]), list(options)[-1]] if len(options) > 1 else options)
        text = self.text(node, path, default, listed)
        if text in options or node is None or text == default:
            return text
        self.problem(node, path, f"{path.rpartition('.')[2]}: expected {listed}, not {shorten(text)}"
                     f"{self.problems.suggest(text, options)}")
        return default

    def _number(self, node: Node | None, path: str, what: str) -> Node | None:
        scalar = self.scalar(node, path, what)
        if scalar is None:
            return None
        if not scalar.plain or scalar.is_empty:
            shown = f"the text {scalar.describe()}; remove the quotes" if scalar.text.strip() and not scalar.plain \
                else scalar.describe()
            self.problem(scalar, path, f"{path.rpartition('.')[2]}: expected {what}, not {shown}")
            return None
        return scalar

    def integer(self, node: Node | None, path: str, default: int, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        scalar = self._number(node, path, "a whole number")
        if scalar is None:
            return default
        name, value = path.rpartition(".")[2], scalars.as_int(scalar.text)
        if value is None:
            self.problem(scalar, path, f"{name}: expected a whole number, not {scalar.describe()}")
        elif value < low:
            self.problem(scalar, path, f"{name}: {shorten(scalar.text)} is too small; it must be at least {low}")
        elif value > high:
            self.problem(scalar, path, f"{name}: {shorten(scalar.text)} is too large; it must be at most {high:,}")
        else:
            return value
        return default

    def real(self, node: Node | None, path: str, default: float | None = None) -> float | None:
        """A finite number."""
        scalar = self._number(node, path, "a number")
        if scalar is None:
            return default
        value = scalars.as_float(scalar.text)
        if value is None or not math.isfinite(value):
            what = "a number" if value is None else "a finite number"
            self.problem(scalar, path, f"{path.rpartition('.')[2]}: expected {what}, not {scalar.describe()}")
            return default
        return value

    def boolean(self, node: Node | None, path: str, default: bool = False) -> bool:
        """``true`` or ``false`` (also ``yes``/``no``, ``on``/``off``)."""
        scalar = self.scalar(node, path, "true or false")
        if scalar is None:
            return default
        value = scalars.as_bool(scalar.text) if scalar.plain else None
        if value is None:
            self.problem(scalar, path, f"{path.rpartition('.')[2]}: expected true or false, not {scalar.describe()}")
            return default
        return value

    def duration(self, node: Node | None, path: str, default: float, high: float) -> float:
        """Seconds."""
        what = "a duration such as 90, 10m, 1h30m or 00:10:00"
        scalar = self.scalar(node, path, what)
        if scalar is None:
            return default
        name, value = path.rpartition(".")[2], scalars.as_duration(scalar.text)
        if value is None or not math.isfinite(value):
            hint = "; it must not be negative" if scalar.text.startswith("-") else ""
            self.problem(scalar, path, f"{name}: expected {what}, not {scalar.describe()}{hint}")
        elif not 0 <= value <= high:
            self.problem(scalar, path, f"{name}: {scalar.describe()} is out of range; it must be 0 (no limit) to "
                         f"{high:,.0f} seconds")
        else:
            return value
        return default

    def size(self, node: Node | None, path: str, default: int, high: int) -> int:
        """Bytes."""
        what = "a size such as 500MB, 2GiB or a number of bytes"
        scalar = self.scalar(node, path, what)
        if scalar is None:
            return default
        name, value = path.rpartition(".")[2], scalars.as_size(scalar.text)
        if value is None:
            hint = "; it must not be negative" if scalar.text.startswith("-") else ""
            self.problem(scalar, path, f"{name}: expected {what}, not {scalar.describe()}{hint}")
        elif value > high:
            self.problem(scalar, path, f"{name}: {scalar.describe()} is too large; it must be at most {high:,} bytes")
        else:
            return value
        return default

    def template(self, node: Node | None, path: str, names: Collection[str], what: str = "a text") -> str:
        """A text with ``{name}`` from ``names`` or the built-in ones."""
        text = self.text(node, path, "", what)
        if node is not None and text:
            self.check_template(node, path, text, names)
        return text

    def shell_text(self, node: Node | None, path: str, names: Collection[str]) -> str:
        """A template that a shell reads: ``${NAME}`` that is no variable of the file is left to the shell."""
        if node is None:
            return ""
        if node.kind != "scalar" or node.is_empty:
            self.problem(node, path, f"{path.rpartition('.')[2]}: expected a text, not {node.describe()}")
            return ""
        for match in _SHELL_REFERENCE.finditer(node.text):
            if match.group(1) in names:
                self.problem_in(node, path, f"{match.group()} would be the shell's variable, but {match.group(1)!r} "
                                f"is a parameter: write {{{match.group(1)}}}", match.group(),
                                node.text.count(match.group(), 0, match.start()))
        text = _SHELL_REFERENCE.sub(r"${{\1}}", node.text)
        self.check_template(node, path, text, names)
        return text

    def check_template(self, node: Node, path: str, text: str, names: Collection[str]) -> None:
        """Note a brace out of place and names that are not defined."""
        known = [*names, *template.BUILTINS]
        wrong = self._misplaced(text, frozenset(known))
        for offset, snippet, message in islice(wrong, MOST_IN_A_TEXT):
            if not message:
                name = snippet[1:-1]
                hint = self.problems.suggest(name, known)
                if not hint:
                    hint = (f"; its parameters are {', '.join(list(names)[:10])}" if names else
                            "; the job has no parameters") + ". Write {{ and }} for braces"
                message = f"{snippet} is not defined{hint}"
            self.problem_in(node, path, message, snippet, text.count(snippet, 0, offset))
        if next(wrong, None) is not None:
            self.problem(node, path, f"and more than {MOST_IN_A_TEXT} braces in this text are out of place or hold no "
                         "name that is defined")

    def _misplaced(self, text: str, known: Collection[str]) -> Iterator[tuple[int, str, str]]:
        """(offset, what stands there, what is wrong with it; empty: a name that is not known)."""
        start = 0
        while start < len(text):
            error, end = None, len(text)
            try:
                parsed = template.parse(text[start:])
            except template.TemplateError as found:
                error = found
                parsed = template.parse(text[start:start + error.offset])
            for name, offset in zip(parsed.fields, parsed.offsets, strict=True):
                if name not in known:
                    yield start + offset, f"{{{name}}}", ""
            if error is not None:
                at = start + error.offset
                end = text.find("}", at) + 1 or len(text)
                yield at, text[at:end], error.message
            start = end
