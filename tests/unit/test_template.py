"""Templates: what is replaced, what is refused, and that the compiled form says the same as the plain one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model.jobspec import JobGroup
from mpiflux.model.params import FloatColumn, LinspaceColumn, ListColumn, ParamTable, RangeColumn, Value
from mpiflux.model.template import BUILTINS, CompiledGroup, TemplateError, format_value, parse


def test_names_and_braces() -> None:
    template = parse("--x={x} {{{job.id}}} }}{{")
    assert template.names == {"x", "job.id"}
    assert template.expand({"x": 1.5, "job.id": 7}) == "--x=1.5 {7} }{"


def test_constant() -> None:
    template = parse('{{"a": 1}}')
    assert template.is_constant
    assert template.expand({}) == '{"a": 1}'


@pytest.mark.parametrize(("text", "offset"), [
    ("a {", 2), ("}", 0), ("ab{}", 2), ("{0}", 0), ("{a b}", 0), ("x{a!r}", 1), ("{a:>5}", 0), ("{a[0]}", 0),
    ("{a.b.c}", 0), ("{job.__class__.__init__}", 0), ("{{{", 2), ("{a}}", 3), ("{ a }", 0),
])
def test_refused(text: str, offset: int) -> None:
    with pytest.raises(TemplateError) as error:
        parse(text)
    assert error.value.offset == offset


def test_attributes_are_not_reached() -> None:
    with pytest.raises(TemplateError, match="__class__") as error:
        parse("x {job.__class__}").expand({"job": "text", "job.id": 1})
    assert error.value.offset == 2


@pytest.mark.parametrize(("value", "text"), [
    (True, "true"), (False, "false"), (1, "1"), (0.1, "0.1"), (1e300, "1e+300"), (-0.0, "-0.0"), ("{x}", "{x}"),
])
def test_values(value: Value, text: str) -> None:
    assert format_value(value) == text
    assert parse("{v}").expand({"v": value}) == text


@given(st.text())
def test_doubled_braces_give_the_text_back(text: str) -> None:
    assert parse(text.replace("{", "{{").replace("}", "}}")).expand({}) == text


@given(st.text(alphabet="{}ab.$ :!"))
def test_parse_raises_only_template_error(text: str) -> None:
    try:
        template = parse(text)
    except TemplateError as error:
        assert text[error.offset] in "{}"
    else:
        assert all(text[o] == "{" for o in template.offsets)


def group(**fields: object) -> JobGroup:
    return JobGroup(**{"number": 0, "name": "sim", "first_id": 11, "count": 6, **fields})  # type: ignore[arg-type]


TABLES = [
    ParamTable(("a", "b", "c"), (RangeColumn(5, -2, 2), ListColumn(("x y", True)), LinspaceColumn(0.0, 1.0, 3))),
    ParamTable(("a", "b", "c"), (RangeColumn(0, 1, 5000), ListColumn(("é",)), LinspaceColumn(-1.0, 1.0, 2000))),
    ParamTable(("a", "b", "c"), (RangeColumn(0, 1, 2), ListColumn((1, 2)), LinspaceColumn(0.0, 1.0, 2)), "zip"),
    ParamTable(("a", "b", "c"), tuple(FloatColumn(bytes(8 * 5000)) for _ in range(3)), "zip"),
]
TEXTS = ["{a}", "x{a}", "{a}x", "x{a}x", "{a}{b}{c}", "-{a}-{{{b}}}-{job.id}-", "{job.name}", "{workflow.dir}/%d",
         "{job.index}.{job.attempt}", "constant", "", "{job.name}{a}{job.name}"]


@pytest.mark.parametrize("table", TABLES)
def test_compiled_says_what_expand_says(table: ParamTable) -> None:
    made = group(params=table, count=len(table), command=tuple(TEXTS), env={f"V{i}": t for i, t in enumerate(TEXTS)},
                 script="#!/bin/sh\necho {a}", cwd="{b}", input="{c}", output="{job.id}", error="e")
    compiled = CompiledGroup(made, "/w d")
    for index in {0, 1, len(table) // 2, len(table) - 1}:
        values = {**table.row(index), "job.id": 11 + index, "job.index": index, "job.attempt": 3, "job.name": "sim",
                  "workflow.dir": "/w d"}
        assert set(values) >= set(BUILTINS)
        expected = [parse(text).expand(values).encode() for text in TEXTS]
        assert compiled.argv(index, 3) == expected
        env = {**compiled.constant_env, **dict(compiled.env_items(index, 3))}
        assert env == {b"V%d" % i: text for i, text in enumerate(expected)}
        assert compiled.script(index, 3) == b"#!/bin/sh\necho " + format_value(values["a"]).encode()
        assert compiled.cwd(index, 3) == format_value(values["b"]).encode()
        assert compiled.input(index, 3) == format_value(values["c"]).encode()
        assert compiled.output(index, 3) == b"%d" % (11 + index)
        assert compiled.error(index, 3) == b"e"


def test_constant_parts_are_apart() -> None:
    compiled = CompiledGroup(group(env={"A": "{job.name}-{workflow.dir}", "B": "{job.index}"}), "/d")
    assert compiled.constant_env == {b"A": b"sim-/d"}
    assert compiled.env_items(2, 1) == [(b"B", b"2")]


def test_argv_is_the_callers_own() -> None:
    compiled = CompiledGroup(group(command=("a", "{job.index}")), "")
    first = compiled.argv(0, 1)
    first[0] = b"changed"
    assert compiled.argv(1, 1) == [b"a", b"1"]


def test_shell_script_and_nothing() -> None:
    assert CompiledGroup(group(shell=True, command=("echo {job.id} | cat",)), "").argv(0, 1) == [
        b"/bin/sh", b"-c", b"echo 11 | cat"]
    empty = CompiledGroup(group(script="x"), "")
    assert empty.argv(0, 1) == []
    assert empty.cwd(0, 1) == empty.input(0, 1) == empty.output(0, 1) == empty.error(0, 1) == b""


def test_undecodable_directory_survives() -> None:
    assert CompiledGroup(group(command=("{workflow.dir}",)), "/\udcff").argv(0, 1) == [b"/\xff"]


@pytest.mark.parametrize(("cwd", "value", "made"), [
    ("/base/{d}", "/tmp", "/tmp"), ("/base/{d}/sub", "/tmp", "/tmp/sub"), ("/base/{d}", "tmp", "/base/tmp"),
    ("/base/{d}", "a//b", "/base/a//b"), ("/base/x{d}", "/tmp", "/base/x/tmp"), ("/base//x/{d}", "y", "/base//x/y"),
    ("/base/{workflow.dir}/{d}", "y", "/flow/y"), ("/base/{workflow.dir}", "", "/flow"), ("/a/{{{d}}}", "b", "/a/{b}"),
])
def test_a_value_that_is_an_absolute_directory_begins_anew(cwd: str, value: str, made: str) -> None:
    table = ParamTable(("d",), (ListColumn((value,)),), "zip")
    assert CompiledGroup(group(cwd=cwd, params=table), "/flow").cwd(0, 1) == made.encode()


def test_unknown_name_is_refused_when_compiled() -> None:
    with pytest.raises(TemplateError, match="nope"):
        CompiledGroup(group(command=("a", "{nope}")), "")
