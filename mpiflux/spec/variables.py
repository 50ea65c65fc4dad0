"""``variables:``, ``${name}``, and ``--set``: what changes the document before it is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from mpiflux.spec.nodes import Node, Refused, compose
from mpiflux.spec.problems import Problems, shorten, suggest

REFERENCE = re.compile(r"\$\{([^\W\d]\w*)\}")
_NAME = re.compile(r"[^\W\d]\w*")
MAX_EXPANDED = 64 << 20
"""Characters that all replacements of a file may produce."""


class Substitution:
    """Replaces ``${name}`` in the scalars of a document, in place."""

    def __init__(self, variables: Mapping[str, Node], problems: Problems) -> None:
        self.variables = variables
        self.problems = problems
        self.produced = 0

    def apply(self, root: Node) -> None:
        """Replace in every value below ``root``, shared ones once. Names that are no variable stay: in a shell's
        text they are the shell's, elsewhere the reader reports them."""
        seen: set[int] = set()
        todo = [root]
        while todo:
            node = todo.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.kind == "scalar":
                self.scalar(node)
            else:
                todo.extend(node.children())

    def scalar(self, node: Node) -> None:
        """Replace in one scalar. A text that is one reference and nothing else takes the variable's type too."""
        if "${" not in node.text:
            return
        whole = REFERENCE.fullmatch(node.text)
        if whole and whole.group(1) in self.variables:
            variable = self.variables[whole.group(1)]
            node.text, node.plain = variable.text, variable.plain
            return
        node.text = REFERENCE.sub(self._replace, node.text)
        if self.produced > MAX_EXPANDED:
            self.problems.add(node.line, node.column, f"variables make this file expand to more than "
                              f"{MAX_EXPANDED >> 20} MiB", source=node.source)
            raise Refused

    def _replace(self, match: re.Match[str]) -> str:
        variable = self.variables.get(match.group(1))
        if variable is None or self.produced > MAX_EXPANDED:
            return match.group()
        self.produced += len(variable.text)
        return variable.text


def read_variables(node: Node | None, problems: Problems) -> dict[str, Node]:
    """The file's variables; one may use those above it."""
    if node is None:
        return {}
    if node.kind != "mapping":
        problems.add(node.line, node.column, f"variables: expected a mapping of names to values, not {node.describe()}",
                     "$.variables", node.source)
        return {}
    variables: dict[str, Node] = {}
    substitution = Substitution(variables, problems)
    for name, (key, value) in node.entries.items():
        path = f"$.variables.{name}"
        if not _NAME.fullmatch(name):
            problems.add(key.line, key.column, f"{shorten(name)} cannot be a variable: a name is letters, digits and _",
                         path, key.source)
        elif value.kind != "scalar":
            problems.add(value.line, value.column, f"variable {name}: expected a single value, not {value.describe()}",
                         path, value.source)
        else:
            copy = Node("scalar", value.line, value.column, text=value.text, plain=value.plain, source=value.source)
            substitution.scalar(copy)
            variables[name] = copy
    return variables


class Overrides:
    """Applies ``--set NAME=VALUE`` to a document: variables by name, keys of the file by dotted path."""

    def __init__(self, root: Node, top_keys: Iterable[str], problems: Problems) -> None:
        self.root, self.top_keys, self.problems = root, tuple(top_keys), problems

    def apply(self, name: str, text: str) -> None:
        """One option. What is wrong with it is noted with ``--set NAME`` as its place."""
        source = f"--set {name}"
        if re.search("[\0\ud800-\udfff]", name + text):
            self.problems.add(0, 0, "not valid text", source=source)
            return
        variables = self._variables()
        if name in variables:
            value = self._value(text, source, nested=False)
            if value is not None:
                variables[name] = (variables[name][0], value)
            return
        parts = name.split(".")
        if parts[0] not in self.top_keys or parts[0] == "variables":
            self._unknown(name, source, variables)
            return
        self._set(parts, name, text, source)

    def _variables(self) -> dict[str, tuple[Node, Node]]:
        entry = self.root.entries.get("variables")
        return entry[1].entries if entry is not None else {}

    def _unknown(self, name: str, source: str, variables: Iterable[str]) -> None:
        variables = list(variables)
        shown = f"its variables are {', '.join(variables[:10])}" if variables else "it declares no variables"
        last = name.split(".")[-1]
        self.problems.add(0, 0, f"the workflow has no variable and no key {name!r} ({shown}"
                          f"{suggest(last, variables) or suggest(name, [*variables, *self.top_keys])})", source=source)

    def _set(self, parts: list[str], name: str, text: str, source: str) -> None:
        """Set a key of the file, making mappings on the way where the file has none."""
        node = self.root
        walked: list[str] = []
        while parts:
            # job names may hold dots, so the longest key that fits is taken
            length = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in node.entries), 0)
            key = ".".join(parts[:length or 1])
            if length == 0 and walked[:1] == ["jobs"] and (len(walked) == 1 or walked[2:3] == ["parameters"]):
                what = "job" if len(walked) == 1 else "parameter"
                self.problems.add(0, 0, f"there is no {what} {key!r}{suggest(key, node.entries)}", source=source)
                return
            parts = parts[length or 1:]
            key_node = node.entries[key][0] if length else Node("scalar", text=key, source=source)
            if not parts:
                value = self._value(text, source, nested=True)
                if value is not None:
                    node.entries[key] = (key_node, value)
                return
            # a copy, because an alias may share the mapping with another key
            child = node.entries[key][1].copy() if length else Node("mapping", source=source)
            node.entries[key] = (key_node, child)
            node = child
            walked.append(key)
            if node.kind != "mapping":
                self.problems.add(0, 0, f"{'.'.join(walked)} is {node.describe()} and has no key {parts[0]!r}",
                                  source=source)
                return

    def _value(self, text: str, source: str, *, nested: bool) -> Node | None:
        """The value as YAML reads it: quotes make a text, ``[…]`` and ``{…}`` a list or mapping where a key of
        the file is set; anything else is a plain scalar, whatever punctuation it holds."""
        stripped = text.strip()
        if stripped[:1] not in (("'", '"', "[", "{") if nested else ("'", '"')) or not stripped:
            return Node("scalar", text=stripped, plain=True, source=source)
        local = Problems(source)
        try:
            node = compose(stripped, local)
        except Refused:
            node = None
        for problem in local.found:
            self.problems.add(0, 0, problem.message, source=source)
        if node is None or local.found:
            return None
        todo = [node]
        while todo:
            item = todo.pop()
            item.line = item.column = 0
            item.source = source
            todo.extend(item.children())
            for key, _ in item.entries.values():
                key.line = key.column = 0
                key.source = source
        return node
