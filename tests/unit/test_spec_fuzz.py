"""Whatever a file holds, the loader answers with a workflow or with problems, and soon."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.model.template import CompiledGroup
from mpiflux.spec import WorkflowError, load, load_hierarchy
from mpiflux.spec.jobs import KEYS as JOB_KEYS
from mpiflux.spec.jobs import RESOURCES
from mpiflux.spec.loader import KEYS
from mpiflux.spec.scalars import as_bool, as_duration, as_float, as_int, as_size, resolve

GENERATORS = ("linspace", "logspace", "range", "lhs", "uniform", "normal", "csv", "seed", "column")
words = st.sampled_from([
    *KEYS, *JOB_KEYS, *RESOURCES, *GENERATORS, "a", "b", "${v}", "${w}", "{p}", "{job.id}", "{", "}}", "'", "node",
    "core", "width", "levels", "children", "count", "share", "by", "fcfs", "zip", "each", "any", "yes", "10m", "2G",
    "-1", "<<", "",
])
scalars = (words | st.text(max_size=5) | st.integers(-3, 50) | st.booleans() | st.none()
           | st.floats(-10, 10) | st.sampled_from([1e400, -1e400, 10**30]))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
                      max_leaves=12)
generators = st.dictionaries(st.sampled_from(GENERATORS), st.lists(st.integers(-3, 50) | st.floats(-2, 2), max_size=4)
                             | st.integers(-3, 50) | values, min_size=1, max_size=2)
jobs = st.fixed_dictionaries({"command": st.lists(words, min_size=1, max_size=3) | words}, optional={
    "parameters": st.dictionaries(st.sampled_from(["p", "q", "r s"]), generators | values, max_size=2),
    "resources": st.dictionaries(words, scalars, max_size=3), "after": values, "retries": values,
    "retry_on": values,
    "env": st.dictionaries(words, scalars, max_size=2),
    "secrets": st.lists(words | values, max_size=2) | words,
    **{key: scalars for key in JOB_KEYS if key not in (
        "command", "parameters", "resources", "after", "env", "retries", "retry_on")}})
workflows = st.fixed_dictionaries(
    {"jobs": st.dictionaries(st.sampled_from(["a", "b", "c.d"]), jobs, max_size=3) | values},
    optional={**{key: values for key in KEYS if key != "jobs"},
              "secrets": st.lists(words, max_size=2) | values,
              "variables": st.dictionaries(st.sampled_from(["v", "w"]), scalars)})
pieces = st.sampled_from([*"jobs:ac{}[],'\"&*!|>-?%@#<~ \n\t$\r", "jobs:\n", "  a:\n", "    command: ", "&x ", "*x",
                          "- ", "---\n", "{p}", "${v}", "<<: ", "\\", "\u2028", "é"])


def try_load(path: str, data: bytes, overrides: dict[str, str] | None = None) -> None:
    try:
        workflow = load(path, text=data, overrides=overrides or {})
    except WorkflowError as error:
        assert error.problems
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        lines = f'{data.decode("utf-16" if utf16 else "utf-8", "replace")}.'.splitlines()
        for problem in error.problems:
            assert problem.message
            assert 0 <= problem.line <= len(lines)
            assert (problem.line == 0) == (problem.column == 0)
            str(problem).encode("utf-8", "surrogateescape")
        return
    assert workflow.groups or workflow.controller
    for group in workflow.groups:
        assert group.count >= 1
        compiled = CompiledGroup(group, workflow.directory)
        for index in (0, group.count - 1):
            for text in (*compiled.argv(index, 1), compiled.script(index, 1), compiled.cwd(index, 1)):
                assert b"\0" not in text


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["w.yaml", "w.json"]))
def test_random_bytes(data: bytes, path: str) -> None:
    try_load(path, data)


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, max_size=40).map("".join), st.sampled_from(["w.yaml", "w.json"]))
def test_random_punctuation(text: str, path: str) -> None:
    try_load(path, text.encode())


@settings(max_examples=500, deadline=None)
@given(workflows, st.sampled_from(["w.yaml", "w.json"]), st.dictionaries(
    st.sampled_from(["v", "w", "name", "jobs.a.retries", "jobs.a.after", "jobs.b.parameters.p", "jobs", "policy.name",
                     "x.y"]),
    st.text(max_size=6) | st.sampled_from(["3", "[a]", "{a: any}", "'x'", "{"]), max_size=2))
def test_random_workflows(data: object, path: str, overrides: dict[str, str]) -> None:
    text = json.dumps(data).replace("Infinity", ".inf" if path == "w.yaml" else "1e999").replace("NaN", "null")
    try_load(path, text.encode(), overrides)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20) | values.map(json.dumps))
def test_random_hierarchies(option: str) -> None:
    try:
        spec = load_hierarchy(option)
    except WorkflowError as error:
        assert error.problems
    else:
        assert spec.levels is not None or spec.nested is not None


@given(st.text(max_size=30) | st.from_regex(r"[-+]?[0-9._eExob:\-dhms ]{0,12}", fullmatch=True))
def test_scalars_never_raise(text: str) -> None:
    for read in (as_int, as_float, as_bool, as_duration, as_size):
        read(text)
    try:
        assert resolve(text) is not None
    except ValueError as error:
        assert "finite" in str(error)
