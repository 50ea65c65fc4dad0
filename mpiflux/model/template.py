"""Command templates: ``{name}`` is replaced, ``{{`` and ``}}`` are braces, and nothing else is special.

This is deliberately not :meth:`str.format`: no attributes, no indexes, no format codes, so a workflow file
can reach nothing but the names it is given. Names are a group's parameters and :data:`BUILTINS`.

Expansion runs on supervisors, once for each job that starts. :class:`CompiledGroup` therefore turns a group
into bytes and a few small functions ahead of time; what does not vary is encoded once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.params import Column, ParamTable, Value

BUILTINS = ("job.id", "job.name", "job.index", "job.attempt", "workflow.dir")
"""Names that every template knows besides the parameters."""

SHELL = b"/bin/sh"

_NAME = r"[^\W\d][\w-]*"
_TOKEN = re.compile(r"\{\{|\}\}|\{(" + _NAME + r"(?:\." + _NAME + r")?)\}|[{}]")
_PRECOMPUTED = 1024
"""Columns up to this length are encoded when their group is compiled."""


class TemplateError(ValueError):
    """A text that is no template, or a name without a value. ``offset``: characters from the text's start."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.message, self.offset = message, offset


class Template:
    """A parsed text: ``literals[0] {fields[0]} literals[1] … literals[-1]``."""

    __slots__ = ("fields", "literals", "offsets")

    def __init__(self, literals: tuple[str, ...], fields: tuple[str, ...], offsets: tuple[int, ...]) -> None:
        self.literals, self.fields, self.offsets = literals, fields, offsets

    @property
    def names(self) -> frozenset[str]:
        """The names that :meth:`expand` needs."""
        return frozenset(self.fields)

    @property
    def is_constant(self) -> bool:
        return not self.fields

    def expand(self, values: Mapping[str, Value]) -> str:
        """The text with every name replaced. Raises :class:`TemplateError` for a name that has no value."""
        parts = [self.literals[0]]
        for i, name in enumerate(self.fields):
            if name not in values:
                raise TemplateError(f"{{{name}}} has no value here", self.offsets[i])
            parts.append(format_value(values[name]))
            parts.append(self.literals[i + 1])
        return "".join(parts)


def parse(text: str) -> Template:
    """Read a template. Raises :class:`TemplateError` at the first brace that is out of place."""
    if "{" not in text and "}" not in text:
        return Template((text,), (), ())
    literals: list[str] = []
    fields: list[str] = []
    offsets: list[int] = []
    current: list[str] = []
    position = 0
    for match in _TOKEN.finditer(text):
        current.append(text[position:match.start()])
        position = match.end()
        token = match.group()
        if token in ("{{", "}}"):
            current.append(token[0])
        elif match.group(1) is not None:
            literals.append("".join(current))
            current.clear()
            fields.append(match.group(1))
            offsets.append(match.start())
        else:
            raise TemplateError(_misplaced(text, match.start()), match.start())
    current.append(text[position:])
    literals.append("".join(current))
    return Template(tuple(literals), tuple(fields), tuple(offsets))


def _misplaced(text: str, at: int) -> str:
    """What is wrong with the brace at ``at``."""
    if text[at] == "}":
        return "'}' without its '{'; write '}}' for a brace"
    end = text.find("}", at)
    inside = text[at + 1:end] if end >= 0 else ""
    if end < 0:
        return "'{' without its '}'; write '{{' for a brace"
    if re.fullmatch(_NAME + r"(?:\." + _NAME + r")?\s*[:!\[].*", inside, re.DOTALL):
        return f"'{{{inside}}}' has a format or an index; only plain names such as {{name}} are replaced"
    shown = inside if len(inside) <= 40 else inside[:37] + "..."
    return f"{'{' + shown + '}'!r} is not a name in braces; write '{{{{' and '}}}}' for braces"


def format_value(value: Value) -> str:
    """A value as it appears in a command.

    Booleans are ``true`` and ``false`` (as YAML writes them), floats the shortest text that reads back to the
    same number, texts what they are.
    """
    if value is True:
        return "true"
    if value is False:
        return "false"
    return value if isinstance(value, str) else repr(value)


def encode_value(value: Value) -> bytes:
    """:func:`format_value` as the bytes that a process is given."""
    return _encode(format_value(value))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


Getter = Callable[[int, int], bytes]
"""(index, attempt) to bytes."""


def _value_getter(column: Column) -> Callable[[int], bytes]:
    """The encoded value of a column at a position."""
    if len(column) <= _PRECOMPUTED:
        return [encode_value(column.value(i)) for i in range(len(column))].__getitem__
    value, encode = column.value, encode_value
    return lambda i: encode(value(i))


def _column_getter(column: Column, stride: int) -> Getter:
    """The encoded value of a column of a product for an element; stride 0 stands for ``zip``."""
    at, length = _value_getter(column), len(column)
    if stride == 0:
        return lambda index, attempt: at(index)
    if stride == 1:
        return lambda index, attempt: at(index % length)
    return lambda index, attempt: at(index // stride % length)


def _param_getters(params: ParamTable) -> dict[str, Getter]:
    getters: dict[str, Getter] = {}
    stride = 1
    for name, column in zip(reversed(params.names), reversed(params.columns), strict=True):
        if params.sampling == "zip":
            getters[name] = _column_getter(column, 0)
        else:
            getters[name] = _column_getter(column, stride)
            stride *= len(column)
    return getters


def _piece(text: str, constants: Mapping[str, bytes], getters: Mapping[str, Getter]) -> bytes | Getter:
    """A template as bytes where it is constant, else as a function."""
    template = parse(text)
    parts: list[bytes | Getter] = [_encode(template.literals[0])]
    for i, name in enumerate(template.fields):
        if name not in constants and name not in getters:
            raise TemplateError(f"{{{name}}} is neither a parameter nor one of {', '.join(BUILTINS)}",
                                template.offsets[i])
        value = constants[name] if name in constants else getters[name]
        for part in (value, _encode(template.literals[i + 1])):
            last = parts[-1]
            if isinstance(part, bytes) and isinstance(last, bytes):
                parts[-1] = last + part
            else:
                parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return _joined(parts)


def _directory(text: str, constants: Mapping[str, bytes], getters: Mapping[str, Getter]) -> bytes | Getter:
    """The same for a path, where a value that is an absolute path begins anew, as for :func:`os.path.join`."""
    plain = _piece(text, constants, getters)
    template = parse(text)
    if not template.fields:
        return plain
    first, *literals = map(_encode, template.literals)
    pairs = list(zip(template.fields, literals, strict=True))

    def path(index: int, attempt: int) -> bytes:
        out = first
        for name, literal in pairs:
            value = constants[name] if name in constants else getters[name](index, attempt)
            out = (value if value.startswith(b"/") and out.endswith(b"/") else out + value) + literal
        return out

    return path(0, 1) if isinstance(plain, bytes) else path


def _joined(parts: list[bytes | Getter]) -> Getter:
    """A function for literal, getter, literal, …: the usual shapes without a loop."""
    first, getter, last = parts[:3]
    if (len(parts) == 3 and isinstance(first, bytes) and isinstance(last, bytes)
            and not isinstance(getter, bytes)):
        if not first and not last:
            return getter
        if not last:
            return lambda index, attempt: first + getter(index, attempt)
        return lambda index, attempt: first + getter(index, attempt) + last
    return lambda index, attempt: b"".join(
        [part if isinstance(part, bytes) else part(index, attempt) for part in parts])


class CompiledGroup:
    """A job group, ready to start elements of it by the thousand.

    ``index`` is the element's position in the group, from 0; ``attempt`` counts from 1. Every text is
    returned as the bytes the kernel takes (UTF-8, undecodable bytes restored). Raises :class:`TemplateError` on
    construction when a template is malformed or names something unknown; the loader has checked that for
    workflow files.
    """

    __slots__ = ("_argv", "_argv_pieces", "_env_pieces", "_files", "_script", "constant_env", "group")

    def __init__(self, group: JobGroup, workflow_dir: str) -> None:
        self.group = group
        constants = {"job.name": _encode(group.name), "workflow.dir": _encode(workflow_dir)}
        first_id, base = group.first_id, group.base
        getters: dict[str, Getter] = {
            **_param_getters(group.params),
            "job.id": lambda index, attempt: b"%d" % (first_id + index),
            "job.index": lambda index, attempt: b"%d" % (base + index),
            "job.attempt": lambda index, attempt: b"%d" % attempt,
        }
        prefix = [SHELL, b"-c"] if group.shell else []
        pieces = [*prefix, *(_piece(text, constants, getters) for text in group.command)]
        self._argv = [piece if isinstance(piece, bytes) else b"" for piece in pieces]
        self._argv_pieces = [(i, piece) for i, piece in enumerate(pieces) if not isinstance(piece, bytes)]
        self.constant_env: dict[bytes, bytes] = {}
        """Environment variables that are the same for every element."""
        self._env_pieces: list[tuple[bytes, Getter]] = []
        for name, text in group.env.items():
            piece = _piece(text, constants, getters)
            if isinstance(piece, bytes):
                self.constant_env[_encode(name)] = piece
            else:
                self._env_pieces.append((_encode(name), piece))
        self._script = _piece(group.script or "", constants, getters)
        self._files = [_directory(group.cwd, constants, getters), *(
            _piece(text, constants, getters) for text in (group.input, group.output, group.error))]

    @property
    def is_constant(self) -> bool:
        """Whether arguments and variables are the same for every element."""
        return not self._argv_pieces and not self._env_pieces

    def argv(self, index: int, attempt: int) -> list[bytes]:
        """The whole argument vector: for ``shell`` it is ``/bin/sh -c TEXT``. Empty for a script."""
        out = self._argv.copy()
        for i, piece in self._argv_pieces:
            out[i] = piece(index, attempt)
        return out

    def env_items(self, index: int, attempt: int) -> list[tuple[bytes, bytes]]:
        """The variables that differ between elements; :attr:`constant_env` has the others."""
        return [(name, piece(index, attempt)) for name, piece in self._env_pieces]

    def script(self, index: int, attempt: int) -> bytes:
        """The text of the script; empty when the group has a command."""
        return _at(self._script, index, attempt)

    def cwd(self, index: int, attempt: int) -> bytes:
        """The working directory as the workflow gives it; empty when it does not."""
        return _at(self._files[0], index, attempt)

    def input(self, index: int, attempt: int) -> bytes:
        """The file for standard input, relative to the working directory; empty when not given."""
        return _at(self._files[1], index, attempt)

    def output(self, index: int, attempt: int) -> bytes:
        """The file for standard output, relative to the working directory; empty when not given."""
        return _at(self._files[2], index, attempt)

    def error(self, index: int, attempt: int) -> bytes:
        """The file for standard error, relative to the working directory; empty when not given."""
        return _at(self._files[3], index, attempt)


def _at(piece: bytes | Getter, index: int, attempt: int) -> bytes:
    return piece if isinstance(piece, bytes) else piece(index, attempt)
