"""Workflow files that are wrong: every mistake is found at once, at its line and column, with the way out of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpiflux.spec import Problem, WorkflowError, load, load_hierarchy, load_policy
from mpiflux.spec.problems import MOST, SHOWN


def problems(text: str | bytes, path: str = "w.yaml", /, **overrides: str) -> list[Problem]:
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(WorkflowError) as error:
        load(path, text=data, overrides={k.replace("__", "."): v for k, v in overrides.items()})
    found = list(error.value.problems)
    assert str(error.value) == "\n".join([*(str(p) for p in found), *([error.value.more] if error.value.more else [])])
    return found


def test_every_mistake_of_a_file_in_one_go() -> None:
    text = """\
mpiflux: 2
naem: x
hierarchy: {levels: [core, node]}
policy: {name: fcf}
env: {MPIFLUX_X: 1}
jobs:
  sim:
    command: ["python", "--rho", "{rho}", "--seed", "{sed}"]
    parameters:
      rho: {linspace: [0.1, .nan, 5]}
      seed: {range: 0}
    resources: {tasks: -1, gpus: two}
    time_limit: 10q
    after: trian
  train:
    script: |
      #!/bin/bash
      python train.py {foo}
"""
    assert [(p.line, p.column, p.path) for p in problems(text)] == [
        (1, 10, "$.mpiflux"), (2, 1, "$.naem"), (3, 21, "$.hierarchy.levels"), (4, 16, "$.policy.name"),
        (5, 7, "$.env.MPIFLUX_X"), (8, 54, "$.jobs.sim.command[4]"), (10, 29, "$.jobs.sim.parameters.rho.linspace[1]"),
        (11, 21, "$.jobs.sim.parameters.seed.range"), (12, 24, "$.jobs.sim.resources.tasks"),
        (12, 34, "$.jobs.sim.resources.gpus"), (13, 17, "$.jobs.sim.time_limit"), (14, 12, "$.jobs.sim.after"),
        (18, 23, "$.jobs.train.script")]
    assert str(problems(text)[5]) == "w.yaml:8:54: {sed} is not defined; did you mean 'seed'?"


UNREADABLE = [
    (b"", 1, 1, "empty"), (b"# nothing\n", 1, 1, "empty"), (b"---\n", 1, 1, "empty"),
    (b"jobs: {a: {command: \xff}}", 1, 21, "byte 0xff is not valid UTF-8"),
    (b"\x7fELF\x01\x00\x00", 1, 1, "not a text file"),
    (b"jobs:\n  a: x\x07", 2, 7, "control character U+0007"), (b"\xff\xfeabc", 1, 2, "is not valid UTF-16"),
    ("jobs: {a: 'x", 1, 13, "malformed"), ("jobs:\n\ta: x", 2, 1, "spaces"),
    ("jobs: {a: {retries: ${n}}}", 1, 22, "quotes"),
    ("a: b: c", 1, 5, "malformed"), ("jobs:\n  j:\n    command: {x}y", 3, 17, "quotes"),
    ("a: 1\n---\nb: 1", 2, 1, "second document"), ("[" * 200 + "]" * 200, 1, 101, "deeper than 100"),
    ("- " * 5000, 1, 201, "deeper than 100"), ("a: *b", 1, 4, "no anchor"), ("&a [*a]", 1, 5, "inside what it names"),
    ("%YAML 9.0\n---\na: 1", 1, 1, "malformed"), ("jobs: [a]", 1, 7, "expected a mapping"), ("- a", 1, 1, "mapping"),
    ("just text", 1, 1, "mapping"), ("name: x", 1, 1, "no jobs"), ("jobs:", 1, 6, "no jobs"),
    ("jobs: {}", 1, 7, "no jobs"), ("controller: []", 1, 13, "names no program"),
    ("controller: 'a \"b'", 1, 13, "cannot be split"), ("controller: {a: b}", 1, 13, "a list of arguments"),
    ("name: !!python/object/apply:os.system [ls]\njobs: {a: {command: x}}", 1, 7, "refused"),
    ("jobs: {a: {command: !x y}}", 1, 21, "refused"), ("jobs: {a: {command: !!binary eA==}}", 1, 21, "refused"),
    ("jobs:\n  a: {command: x}\n  a: {command: y}", 3, 3, "first given in line 2"),
    ("jobs: {a: {command: x, retries: 1, retries: 2}}", 1, 36, "twice"),
    ("? [a]\n: b\njobs: {a: {command: x}}", 1, 3, "key"),
    ('jobs: {a: {command: "x\\0y"}}', 1, 21, "NUL"), ("jobs: {a: {<<: 3, command: x}}", 1, 12, "merges a mapping"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), UNREADABLE)
def test_unreadable(text: str | bytes, line: int, column: int, message: str) -> None:
    first = problems(text)[0]
    assert message in first.message
    assert (first.line, first.column) == (line, column)


BOMBS = {
    "lists": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
    "texts": f"a0: &a0 {'x' * 100_000}\na1: &a1 [{', '.join(['*a0'] * 500)}]\n"
             + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(2, 5)),
    "merges": "a: &a {" + ", ".join(f"k{i}: 1" for i in range(3000)) + "}\nb:\n" + "  - {<<: *a}\n" * 3000,
    "variables": "variables:\n  a0: xxxxxxxxxx\n" + "".join(
        f"  a{i}: {('${a' + str(i - 1) + '}') * 10}\n" for i in range(1, 20)) + "jobs: {a: {command: '${a19}'}}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    assert any("expand to more" in p.message or "merges more" in p.message for p in problems(BOMBS[name]))


def test_honest_aliases_are_no_bomb() -> None:
    jobs = "".join(f"  j{i}: {{command: *c, env: *e}}\n" for i in range(500))
    text = "jobs:\n  j: {command: &c [echo, a, b], env: &e {A: 1, B: 2}}\n" + jobs
    assert len(load("w.yaml", text=text.encode()).groups) == 501


KEYS = [
    # job keys, column in "    KEYS" (counted from the key's first character as 1), message
    ("comand: x", 1, "did you mean 'command'"), ("retries: 1", None, "needs a 'command'"),
    ("command: x\nscript: y", None, "both"), ("command: [a]\nshell: true", 10, "not a list"),
    ("script: x\nshell: true", None, "#!"), ("command: []", 10, "empty"), ("command: ''", None, "names no program"),
    ("script: ''", 9, "script: it is empty"), ("script: |\n  \n", None, "script: it is empty"),
    ("command: '  '\nshell: true", 10, "names no program"),
    ("command: ['', a]", 11, "empty"), ("command: [a, [b]]", 14, "expected an argument, not a list"),
    ("command: [a, ]\ninput: [x]", None, "file name"), ("command: {a: b}", 10, "not a mapping"),
    ("command: [a,\n  \"\", ~, {a: b}]", None, "mapping"), ("command: a 'b", 10, "no closing quotation"),
    ("command:", 9, "nothing is there"), ("command: [a, {p}]", None, "mapping"),
    ("command: x {p}", 12, "{p} is not defined"), ("command: 'x {{p} {q}'", 16, "}"),
    ("command: [x, \"a\\tb {job.idx}\"]", 20, "did you mean 'job.id'"),
    ("command: x {job.__class__}", 12, "__class__"),
    ("command: >\n  x\n  y {p}", None, "{p} is not defined"), ("command: x {p:>3}", 12, "format"),
    ("command: x ${HOME}", 12, "no variable 'HOME'"),
    ("command: x\nresources: {core: 1}", None, "did you mean 'cores'"),
    ("command: x\nresources: {mem: 1G}", None, "did you mean 'memory'"),
    ("command: x\nresources: 4", None, "expected a mapping"),
    ("command: x\nresources: {licence: -1}", None, "at least 0"),
    ("command: x\nresources: {cores: 0}", 20, "only a job with 'per: node'"),
    ("command: x\nresources: {cores: -1}", 20, "at least 1"),
    ("command: x\nresources: {cores: '4'}", None, "remove the quotes"),
    ("command: x\nresources: {cores: 1.5}", None, "whole"),
    ("command: x\nresources: {cores: .inf}", None, "whole"),
    ("command: x\nresources: {tasks: 99999999999}", None, "at most"),
    ("command: x\nresources: {memory: -1G}", None, "negative"),
    ("command: x\nresources: {memory: 1XB}", None, "size"),
    ("command: x\nresources: {memory: 9E}", None, "too large"),
    ("command: x\nresources: {layout: packed}", None, "did you mean 'pack'"),
    ("command: x\nresources: {exclusive: 2}", None, "true or false"), ("command: x\npriority: 32", 11, "at most 31"),
    ("command: x\npriority: -1", 11, "at least 0"), ("command: x\nretries: 2.5", 10, "whole number"),
    ("command: x\nretries: [1]", 10, "not a list"), ("command: x\nretries:", 9, "not nothing"),
    ("command: x\ntime_limit: -5", 13, "out of range"), ("command: x\ntime_limit: .inf", 13, "duration"),
    ("command: x\ntime_limit: 1e12", 13, "out of range"), ("command: x\ntime_limit: 5 parsecs", 13, "duration"),
    ("command: x\ntime_limit: 10:99", 13, "duration"), ("command: x\nenv: {'a=b': 1}", 7, "'='"),
    ("command: x\nenv: {'': 1}", 7, "empty"), ("command: x\nenv: {MPIFLUX_URI: 1}", 7, "reserved"),
    ("command: x\nenv: {A: [1]}", 10, "a list"), ("command: x\nenv: {A: '{x}'}", 11, "not defined"),
    ("command: x\nenv: [A=1]", 6, "expected a mapping"), ("command: x\nmpi: pmi2", 6, "did you mean"),
    ("command: x\nper: node\nparameters: {node: [a]}", None, "the node's name"),
    ("command: x {node}", None, "node"), ("command: x\nper: core", 6, "expected node"),
    ("command: x\nafter: j", 8, "itself"), ("command: x\nafter: nobody", 8, "no job 'nobody'"),
    ("command: x\nafter: {j: afterok}", 12, "write ok"), ("command: x\nafter: {j: fine}", 12, "expected ok"),
    ("command: x\nafter: [{j: any}, j]", 19, "twice"), ("command: x\nafter: [[j]]", 9, "a list"),
    ("command: x\nsampling: both", 11, "product or zip"), ("command: x\nparameters: [a]", 13, "mapping"),
    ("command: x\nparameters: {job.id: 1}", 14, "built in"),
    ("command: x\nparameters: {'a b': 1}", 14, "cannot name"),
    ("command: x\nshell: maybe", 8, "true or false"),
    ("command: echo ${p}\nshell: true\nparameters: {p: 1}", 15, "write {p}"),
    ("command: [x, y]\ncwd: {a: b}", 6, "a directory"),
]


@pytest.mark.parametrize(("keys", "column", "message"), KEYS)
def test_job_keys(keys: str, column: int | None, message: str) -> None:
    found = problems("jobs:\n  j:\n" + "".join(f"    {line}\n" for line in keys.splitlines()))
    matching = [p for p in found if message in p.message]
    assert matching, [str(p) for p in found]
    assert matching[0].line >= 3 or "needs a" in message or "both" in message
    if column is not None:
        assert matching[0].column == column + 4


COLUMNS = [
    ("[]", "empty"), ("{range: 0}", "empty"), ("{range: [5, 5]}", "empty"), ("{range: [1, 5, -1]}", "empty"),
    ("{range: -3}", "empty"), ("{range: [1, 5, 0]}", "must not be 0"), ("{range: 1.5}", "whole number"),
    ("{range: []}", "expected"),
    ("{range: [1, 2, 3, 4]}", "list of 4"), ("{range: {}}", "a mapping"), ("{range: 2000000000000}", "more than"),
    ("{linspace: [0, 1]}", "list of 2"), ("{linspace: 5}", "[from, to, number]"),
    ("{linspace: [0, 1, 0]}", "at least 1"),
    ("{linspace: [0, 1, -2]}", "at least 1"), ("{linspace: [0, .inf, 2]}", "finite"),
    ("{linspace: [a, 1, 2]}", "a number"),
    ("{linspace: [-1.7e308, 1.7e308, 3]}", "too large"), ("{linspace: [0, 1, 2000000000000]}", "at most"),
    ("{logspace: [0, 999, 2]}", "-300 to 300"), ("{lhs: [1, 1, 3]}", "less than"),
    ("{uniform: [2, 1, 3]}", "less than"),
    ("{normal: [0, -1, 3]}", "must not be negative"), ("{normal: [0, 1, 3], seed: -1}", "at least 0"),
    ("{normal: [0, 1, 3], sed: 1}", "did you mean 'seed'"), ("{range: 3, seed: 1}", "no key 'seed'"),
    ("{linspce: [0, 1, 3]}", "did you mean 'linspace'"), ("{foo: 1}", "one of linspace"), ("{}", "one of linspace"),
    ("{range: 3, linspace: [0, 1, 2]}", "cannot be used together"), ("[[1]]", "a list"),
    ("[1, .nan]", "not a finite number"),
    (".inf", "not a finite number"), ("[1, , 2]", "malformed"), ("", "missing"),
    ("{lhs: [0, 1, 100000001]}", "no formula"),
    ("{csv: nothing.csv, column: a}", "No such file"), ("{csv: x.csv}", "which column"),
]


@pytest.mark.parametrize(("text", "message"), COLUMNS)
def test_columns(text: str, message: str) -> None:
    found = problems(f"jobs:\n  j:\n    command: x {{p}}\n    parameters:\n      p: {text}\n")
    assert len(found) == 1, [str(p) for p in found]
    assert message in found[0].message
    assert found[0].line == 5


def test_lengths() -> None:
    (found,) = problems("jobs: {j: {command: x, sampling: zip, parameters: {a: [1, 2], b: {range: 3}}}}")
    assert "a has 2, b has 3" in found.message
    (found,) = problems("jobs: {j: {command: x, parameters: {a: {range: 2000000}, b: {range: 2000000}}}}")
    assert "sampling: zip" in found.message


def test_csv(tmp_path: Path) -> None:
    def found(content: bytes, column: str = "a") -> str:
        (tmp_path / "t.csv").write_bytes(content)
        text = f"jobs:\n  j: {{command: x, parameters: {{p: {{csv: t.csv, column: {column}}}}}}}"
        (problem,) = problems(text, str(tmp_path / "w.yaml"))
        assert problem.line == 2
        return problem.message

    assert "it has alpha, beta" in found(b"alpha,beta\n1,2\n", "gamma")
    assert "did you mean 'alpha'" in found(b"alpha,beta\n1,2\n", "alhpa")
    assert "no rows" in found(b"a,b\n")
    assert "is empty" in found(b"")
    assert "line 3: 1 values" in found(b"a,b\n1,2\n3\n")
    assert "2 columns" in found(b"a,a\n1,2\n")
    assert "UTF-8" in found(b"a\n\xff\n")
    assert "NUL" in found(b"a\n\0\n")
    assert "line" in found(b'a\n"x\n')
    (tmp_path / "d.csv").mkdir()
    (problem,) = problems("jobs: {j: {command: x, parameters: {p: {csv: d.csv, column: a}}}}", str(tmp_path / "w.yaml"))
    assert "directory" in problem.message


def test_rings() -> None:
    (found,) = problems("jobs:\n  a: {command: x, after: c}\n  b: {command: x, after: [a]}\n"
                        "  c: {command: x, after: b}\n  d: {command: x, after: c}")
    assert "a -> c -> b -> a" in found.message
    assert (found.line, found.column) == (2, 26)


def test_long_chains_are_no_ring() -> None:
    text = "jobs:\n  j0: {command: x}\n" + "".join(f"  j{i}: {{command: x, after: j{i - 1}}}\n" for i in range(1, 3000))
    assert len(load("w.yaml", text=text.encode()).groups) == 3000


def test_each_must_pair() -> None:
    found = problems("jobs:\n  a: {command: x, parameters: {p: [1, 2]}}\n  b: {command: x, after: {a: each}}")
    assert any("a has 2 and b has 1" in p.message for p in found)


def test_workflow_env_is_checked_in_each_job() -> None:
    found = problems("env: {A: '{p}'}\njobs:\n  a: {command: x, parameters: {p: 1}}\n  b: {command: x}")
    assert [(p.line, p.column) for p in found] == [(1, 11)]


TREES = [
    ("{levels: node}", "expected a list"), ("{levels: [nodes]}", "did you mean 'node'"),
    ("{levels: [node, node]}", "coarse to fine"),
    ("{levels: [0]}", "at least 1"), ("{levels: [-3]}", "at least 1"), ("{width: [0]}", "at least 1"),
    ("{width: [1000, 10000]}", "multiply"), ("{levels: [node], width: [2]}", "only one of"), ("{}", "give one of"),
    ("{level: [node]}", "did you mean 'levels'"), ("{levels: [{by: node, width: 2}]}", "either"),
    ("{levels: [{}]}", "either"),
    ("{levels: [{by: nod}]}", "did you mean 'node'"), ("{levels: [], distribution: random}", "pull or round_robin"),
    ("{children: []}", "at least one"), ("{children: 3}", "at least one"),
    ("{children: [{share: {}}]}", "nodes, cores or gpus"),
    ("{children: [{share: {nodes: -1}}]}", "at least 0"), ("{children: [{name: a}, {name: a}]}", "called a"),
    ("{children: [{count: 0}]}", "at least 1"), ("{children: [{policy: {depth: 1}}]}", "needs a 'name'"),
    ("{children: [{count: 5000, children: [{count: 5000}]}]}", "more than 1,000,000 schedulers"),
    ("{children: [{policy: sjf}]}", "known policies: fcfs"),
    ("{levels: [{by: node, policy: {name: fcfs, depth: 1}}]}", "queue_depth"),
    ("{levels: [{by: node, policy: {name: fcfs, queue_depth: 0}}]}", "at least 1"), ("[1, [2]]", "a mapping"),
]


@pytest.mark.parametrize(("text", "message"), TREES)
def test_trees(text: str, message: str) -> None:
    found = problems(f"hierarchy: {text}\njobs: {{a: {{command: x}}}}")
    assert message in found[0].message
    assert found[0].line == 1 and found[0].column > 11
    with pytest.raises(WorkflowError) as error:
        load_hierarchy(text)
    assert str(error.value.problems[0]).startswith("--hierarchy:1:")
    assert message in str(error.value)


@pytest.mark.parametrize("option", ["", "nodes", "node,,core", "0x4", "core,node", "4x", "no/such.json", "99999999x9"])
def test_hierarchy_option(option: str) -> None:
    with pytest.raises(WorkflowError, match=r"^--hierarchy: .* is neither levels such as node,core"):
        load_hierarchy(option)


SETTINGS = [
    ({"coutn": "1"}, "did you mean 'count'"), ({"xx": "1"}, "its variables are count"),
    ({"jobs__smi__retries": "1"}, "did you mean 'sim'"),
    ({"jobs__sim__resources__core": "1"}, "did you mean 'cores'"),
    ({"jobs__sim__retires": "1"}, "did you mean 'retries'"),
    ({"jobs__sim__retries": "-1"}, "at least 0"), ({"jobs__sim__parameters__q": "1"}, "no parameter 'q'"),
    ({"jobs__sim__command__x": "1"}, "has no key 'x'"), ({"plicy": "fcfs"}, "did you mean 'policy'"),
    ({"variables__count": "1"}, "no key"),
    ({"jobs__sim__after": "[a"}, "malformed"), ({"count": "'x"}, "malformed"), ({"count": "\0"}, "not valid text"),
    ({"count": "\udcff"}, "not valid text"), ({"": "1"}, "no variable"), ({"count": "x"}, "whole number"),
    ({"jobs": "1"}, "mapping"),
]


@pytest.mark.parametrize(("options", "message"), SETTINGS)
def test_set(options: dict[str, str], message: str) -> None:
    text = "variables: {count: 3}\njobs: {sim: {command: x, retries: '${count}', parameters: {p: 1}}}"
    (found,) = problems(text, **options)
    assert message in found.message
    if options != {"count": "x"}:  # the value is wrong where the file uses it
        assert str(found).startswith(f"--set {next(iter(options)).replace('__', '.')}: ")


VARIABLES = [
    ("variables: [a]\n", 1, 12, "mapping"), ("variables: {a: [1]}\n", 1, 16, "single value"),
    ("variables: {a-b: 1}\n", 1, 13, "letters"),
    ("variables: {abc: 1}\nname: ${abd}\n", 2, 7, "did you mean 'abc'"), ("policy: ${x}\n", 1, 9, "declares none"),
    ("variables: {a: '${b}', b: 1}\nname: ${a}\n", 2, 7, "no variable 'b'"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), VARIABLES)
def test_variables(text: str, line: int, column: int, message: str) -> None:
    found = problems(text + "jobs: {a: {command: x}}")
    assert [(p.line, p.column) for p in found] == [(line, column)]
    assert message in found[0].message


JSON = [
    ("", 1, 1, "empty"), ("{", 1, 2, "key in double quotes"), ('{"jobs": {}', 1, 12, "expected ','"),
    ("[1 2]", 1, 4, "expected ','"),
    ("{'a': 1}", 1, 2, "double quotes"), ('{"a" 1}', 1, 6, "':'"), ('{"a": 1,}', 1, 9, "double quotes"),
    ("[1,]", 1, 4, "a value"),
    ('{"a": "x\n"}', 1, 7, "does not end"), ('{"a": "\\q"}', 1, 7, "bad escape"), ("{} x", 1, 4, "after the end"),
    ("[" * 200, 1, 101, "deeper"), ('{"a": NaN}', 1, 7, "a value"), ('{"a": 01}', 1, 8, "expected ','"),
    ('{"jobs":\n\t{"a": {"command": "x"},\n\t "a": 3}}', 3, 3, "twice"),
    ('{"a": "\\ud800"}', 1, 15, "half a character"),
    ('{"jobs": {"a": {"command": "x\\u0000"}}}', 1, 28, "NUL"),
    ('{"jobs": {"a": {"command": "\t{x}"}}}', 1, 28, "does not end"),
    ('{"jobs":\n\t{"a": {\n\t\t"command": "\\t{x}"}}}', 3, 17, "{x} is not defined"), ("# c\n{}", 1, 1, "a value"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), JSON)
def test_json(text: str, line: int, column: int, message: str) -> None:
    first = problems(text, "w.json")[0]
    assert message in first.message
    assert (first.line, first.column) == (line, column)


def test_files(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "directory"), ("a\0b", "null")):
        with pytest.raises(WorkflowError, match=message) as error:
            load(str(path))
        assert str(error.value).startswith(f"{path}: cannot read")


def test_all_mistakes_are_told_in_the_order_of_the_file() -> None:
    jobs = "".join(f"  j{i}: {{comand: x}}\n" for i in range(30))
    found = problems(f"hierarchy: nods\npolicy: fcsf\njobs:\n{jobs}  last: {{command: x, after: nobody}}\n")
    assert [p.line for p in found] == [1, 2, *(line for n in range(30) for line in (4 + n, 4 + n)), 34]


def test_of_a_flood_of_mistakes_the_first_are_told_and_how_many_follow() -> None:
    jobs = "".join(f"  j{i}: {{command: '{{x}}'}}\n" for i in range(SHOWN + 500))
    with pytest.raises(WorkflowError) as error:
        load("w.yaml", text=f"hierarchy: nods\njobs:\n{jobs}".encode())
    assert [p.line for p in error.value.problems] == [1, *range(3, SHOWN + 2)]
    assert str(error.value).splitlines()[-1] == "w.yaml: and 501 more mistakes"
    jobs = json.dumps({"jobs": {f"j{i}": {f"comand{i}": "x", "after": f"j_{i}"} for i in range(MOST)}})
    with pytest.raises(WorkflowError, match=f"at least {MOST - SHOWN:,} more mistakes: it was not read to its end"):
        load("w.json", text=jobs.encode())


SEVERAL = [
    # of one text
    ("command: 'x } {nope} {a:3} {{ {job.id} {also}'", [(4, 17), (4, 19), (4, 26), (4, 44)]),
    ("command: x\n    cwd: '${one}/${two}'", [(5, 11), (5, 18)]),
    ("command: \"'x {nope}\"", [(4, 14), (4, 18)]),
    # of things that exclude each other
    ("command: '{one}'\n    script: '{two}'", [(4, 15), (5, 13), (5, 14)]),
    ("shell: true\n    command: [x, '{nope}']", [(5, 14), (5, 19)]),
    # of columns that are right beside one that is not
    ("command: x\n    sampling: zip\n    parameters: {a: [1, 2], b: [1], c: []}", [(6, 17), (6, 40)]),
]


@pytest.mark.parametrize(("job", "places"), SEVERAL)
def test_a_mistake_does_not_hide_the_next(job: str, places: list[tuple[int, int]]) -> None:
    assert [(p.line, p.column) for p in problems(f"jobs:\n  j: {{command: x}}\n  k:\n    {job}")] == places


def test_shapes_that_exclude_each_other_are_read() -> None:
    found = problems("hierarchy: {levels: [nod], width: 0, distribution: pul}\njobs: {a: {command: x}}")
    assert [p.column for p in found] == [12, 22, 35, 52]
    found = problems("hierarchy: [{by: node, width: 0, policy: fcsf}]\njobs: {a: {command: x}}")
    assert [p.column for p in found] == [13, 31, 42]


def test_elements_of_a_job_whose_parameters_are_wrong_are_not_counted() -> None:
    found = problems("jobs:\n  a: {command: x, parameters: {p: [], q: [1, 2]}}\n"
                     "  b: {command: x, parameters: {p: [1, 2]}, after: {a: each}}")
    assert [p.line for p in found] == [2]


def test_a_program_full_of_braces() -> None:
    text = "".join(f"      x = [{{ {i}: 0 }}]\n" for i in range(500))
    found = problems(f"jobs:\n  a:\n    script: |\n{text}  b: {{}}")
    assert [p.line for p in found] == [3, *range(4, 104), 504]
    assert "more than 100" in found[0].message


def test_policy_option() -> None:
    assert load_policy("my.module:Class", "/w").directory == "/w"
    with pytest.raises(WorkflowError) as error:
        load_policy("fcsf", "/w")
    assert str(error.value).startswith("--policy: 'fcsf' is not known; did you mean 'fcfs'?")


def test_positions_after_wide_characters_and_in_texts_of_many_lines() -> None:
    text = "jobs:\n  é😀:\n    command: x\n  j:\n    script: >-\n      é😀 {job.id}\n      {job.id} {a}\n      {a}\n"
    assert [(p.line, p.column) for p in problems(text)] == [(2, 3), (7, 16), (8, 7)]
