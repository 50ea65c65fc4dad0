"""Workflow files that are right: what each key becomes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mpiflux.model.jobspec import Dependency, HierarchySpec, JobGroup, LevelSpec, NestedSpec, PolicySpec, Workflow
from mpiflux.model.params import FloatColumn, IntColumn, LinspaceColumn, ListColumn, LogspaceColumn, RangeColumn
from mpiflux.model.template import BUILTINS, CompiledGroup
from mpiflux.sched.policies import KNOWN
from mpiflux.spec import generators, jobs, load, load_hierarchy, loader
from mpiflux.spec.tree import POLICIES


def workflow(text: str, path: str = "w.yaml", /, **overrides: str) -> Workflow:
    return load(path, text=text.encode(), overrides={k.replace("__", "."): v for k, v in overrides.items()})


def job(text: str) -> JobGroup:
    """The only job of a file whose job has these keys."""
    (group,) = workflow("jobs:\n  j:\n" + "".join(f"    {line}\n" for line in text.splitlines())).groups
    return group


def column(text: str) -> list[object]:
    (found,) = job(f"command: a\nparameters: {{p: {text}}}").params.columns
    return [found.value(i) for i in range(len(found))]


EXAMPLE = """\
mpiflux: 1
name: icf-uq
hierarchy: {levels: [node, core]}
policy: {name: fcfs, queue_depth: 32}
env: {OMP_NUM_THREADS: "1"}
output_limit: 1MiB
jobs:
  sim:
    command: ["python", "icf.py", "--rho", "{rho}", "--seed", "{seed}", "--out", "{job.id}.npy"]
    parameters:
      rho: {linspace: [0.1, 1.0, 100]}
      seed: {range: 100}
    sampling: product
    resources: {tasks: 1, cores: 2, gpus: 1, memory: 2GiB, layout: spread, exclusive: yes, burst_buffer: 3}
    time_limit: 10m
    retries: 2
    priority: 20
  train:
    script: |
      #!/bin/bash
      python train.py
    after: [sim]
    env: {OMP_NUM_THREADS: 8, X: "{job.name}"}
    cwd: "{workflow.dir}/out"
    input: in
    output: out.{job.id}
    error: err
"""


def test_the_example() -> None:
    result = workflow(EXAMPLE, "/some/dir/w.yaml")
    sim, train = result.groups
    assert (result.name, result.directory, result.source) == ("icf-uq", "/some/dir", "/some/dir/w.yaml")
    assert result.hierarchy == HierarchySpec(levels=(LevelSpec(by="node"), LevelSpec(by="core")))
    assert result.policy == PolicySpec("fcfs", {"queue_depth": 32})
    assert result.output_limit == 1 << 20
    assert (sim.number, sim.first_id, sim.count) == (0, 1, 10_000)
    assert (train.number, train.first_id, train.count, result.total) == (1, 10_001, 1, 10_001)
    request = sim.request
    assert (request.tasks, request.cores, request.gpus, request.memory) == (1, 2, 1, 2 << 30)
    assert (request.layout, request.exclusive, request.consumables) == ("spread", True, {"burst_buffer": 3})
    assert (sim.time_limit, sim.retries, sim.priority) == (600.0, 2, 20)
    assert train.script == "#!/bin/bash\npython train.py\n"
    assert train.after == (Dependency("sim", "ok"),)
    assert (sim.env, train.env) == ({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "8", "X": "{job.name}"})
    assert (train.cwd, train.input, train.output, train.error) == ("{workflow.dir}/out", "in", "out.{job.id}", "err")
    assert CompiledGroup(sim, result.directory).argv(101, 1)[2:] == [
        b"--rho", b"0.1090909090909091", b"--seed", b"1", b"--out", b"102.npy"]
    for group in result.groups:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(group), type=JobGroup) == group


def test_defaults() -> None:
    result = workflow("jobs: {a: {command: x}}", "dir/first.yaml")
    assert result.name == "first"
    assert result.hierarchy is None
    assert result.policy == PolicySpec()
    assert result.groups == (JobGroup(number=0, name="a", first_id=1, count=1, command=("x",)),)


@pytest.mark.parametrize(("text", "argv"), [
    ("command: echo 'a b' \"c\" d\\ e {job.id}", ["echo", "a b", "c", "d e", "{job.id}"]),
    ("command: echo a | wc > x; $HOME", ["echo", "a", "|", "wc", ">", "x;", "$HOME"]),
    ("command: [echo, 1, 1.50, yes, no, null, ~, 0x10, 1e3, 010, 2001-01-01, '', \"1\"]",
     ["echo", "1", "1.50", "yes", "no", "null", "~", "0x10", "1e3", "010", "2001-01-01", "", "1"]),
    ("command: [echo, '{{\"a\": 1}}']", ["echo", '{{"a": 1}}']),
    ("command: true", ["true"]),
    ("command: >\n  python\n  x.py\n  --a=1", ["python", "x.py", "--a=1"]),
])
def test_command(text: str, argv: list[str]) -> None:
    assert job(text).command == tuple(argv)


def test_shell_text_keeps_the_shells_own_variables() -> None:
    text = workflow("variables: {out: /o}\njobs: {j: {shell: true, command: 'echo ${HOME} ${out} ${#x} ${a:-b} {p}', "
                    "parameters: {p: 3}}}").groups[0]
    assert text.shell
    assert CompiledGroup(text, "").argv(0, 1)[2] == b"echo ${HOME} /o ${#x} ${a:-b} 3"
    script = job("script: |\n  echo ${HOME} ${{x}} {job.id}")
    assert CompiledGroup(script, "").script(0, 1) == b"echo ${HOME} ${x} 1\n"


@pytest.mark.parametrize(("text", "expected"), [
    ("{range: 3}", [0, 1, 2]),
    ("{range: [2, 5]}", [2, 3, 4]),
    ("{range: [5, 0, -2]}", [5, 3, 1]),
    ("{range: 1e1}", list(range(10))),
    ("{linspace: [0, 1, 3]}", [0.0, 0.5, 1.0]),
    ("{linspace: [3, 3, 2]}", [3.0, 3.0]),
    ("{logspace: [-1, 1, 3]}", [0.1, 1.0, 10.0]),
    ("[1, 2.5, x, true, yes, '1', 1e-3, 007, 10:00, 0x10, .5, 1_000]",
     [1, 2.5, "x", True, "yes", "1", 0.001, "007", "10:00", 16, 0.5, 1000]),
    ("[123456789012345678901234567890]", ["123456789012345678901234567890"]),
    ("5", [5]), ("a b", ["a b"]), ("''", [""]),
])
def test_parameters(text: str, expected: list[object]) -> None:
    values = column(text)
    assert values == expected
    assert [type(v) for v in values] == [type(v) for v in expected]


def test_formulas_stay_formulas() -> None:
    table = job("command: a\nparameters:\n  a: {range: 1_000_000_000}\n  b: {linspace: [0, 1, 100]}\n"
                "  c: {logspace: [0, 1, 2]}").params
    assert [type(c) for c in table.columns] == [RangeColumn, LinspaceColumn, LogspaceColumn]
    assert len(table) == 10**9 * 100 * 2


def test_lhs_has_one_value_in_each_interval() -> None:
    values = np.array(column("{lhs: [2, 12, 1000], seed: 3}"))
    assert sorted(((values - 2) / 10 * 1000).astype(int)) == list(range(1000))


@pytest.mark.parametrize("kind", ["lhs", "uniform", "normal"])
def test_random_columns_depend_on_seed_and_name_only(kind: str) -> None:
    def both(seed: str, names: str = "ab") -> list[list[object]]:
        lines = "".join(f"\n  {n}: {{{kind}: [0, 1, 500]{seed}}}" for n in names)
        table = job(f"command: a\nsampling: zip\nparameters:{lines}").params
        return [[c.value(i) for i in range(500)] for c in table.columns]

    a, b = both(", seed: 1")
    assert both(", seed: 1") == [a, b]
    assert both(", seed: 1", "b") == [b]
    assert both(", seed: 2")[0] != a
    assert both("") == both(", seed: 0")
    assert abs(np.corrcoef(np.array(a, float), np.array(b, float))[0, 1]) < 0.2


def test_uniform_and_normal_are_what_they_say() -> None:
    uniform, normal = np.array(column("{uniform: [-1, 3, 20000]}")), np.array(column("{normal: [10, 2, 20000]}"))
    assert uniform.min() >= -1 and uniform.max() <= 3 and abs(uniform.mean() - 1) < 0.05
    assert abs(normal.mean() - 10) < 0.1 and abs(normal.std() - 2) < 0.1


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfi, f,s,z\n1,1,a b,01\n\n-2,2.5,\"c,d\",02\n")
    path = tmp_path / "w.yaml"
    path.write_text("jobs: {j: {command: a, sampling: zip, parameters: {"
                    + ", ".join(f"{c}: {{csv: t.csv, column: {c}}}" for c in "ifsz") + "}}}")
    table = load(str(path)).groups[0].params
    assert [table.row(i) for i in range(2)] == [
        {"i": 1, "f": 1.0, "s": "a b", "z": "01"}, {"i": -2, "f": 2.5, "s": "c,d", "z": "02"}]
    assert [type(c) for c in table.columns] == [IntColumn, FloatColumn, ListColumn, ListColumn]


@pytest.mark.parametrize(("text", "seconds"), [
    ("90", 90), ("1.5", 1.5), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h 30m", 5400),
    ("500ms", 0.5), ("2d", 172800),
    ("00:10:00", 600), ("10:00", 600), ("1-00:00:00", 86400), ("1-2", 93600),
    ("2:00:01", 7201), ("0", 0), ("1w", 604800),
])
def test_durations(text: str, seconds: float) -> None:
    assert job(f"command: a\ntime_limit: {text}").time_limit == seconds
    assert job(f"command: a\ntime_limit: '{text}'").time_limit == seconds


@pytest.mark.parametrize(("text", "size"), [
    ("1024", 1024), ("500MB", 500_000_000), ("2GiB", 2 << 30), ("2G", 2 << 30), ("1.5k", 1536),
    ("3 kb", 3000), ("7B", 7),
])
def test_sizes(text: str, size: int) -> None:
    assert job(f"command: a\nresources: {{memory: {text}}}").request.memory == size


@pytest.mark.parametrize(("text", "kinds"), [
    ("a", {"a": "ok"}), ("[a, b]", {"a": "ok", "b": "ok"}), ("{a: any, b: not_ok}", {"a": "any", "b": "not_ok"}),
    ("[{a: any}, b]", {"a": "any", "b": "ok"}), ("[a, a]", {"a": "ok"}),
])
def test_after(text: str, kinds: dict[str, str]) -> None:
    result = workflow(f"jobs:\n  a: {{command: x}}\n  b: {{command: x}}\n  c: {{command: x, after: {text}}}")
    assert {d.group: d.kind for d in result.groups[2].after} == kinds


LEVELS = [
    ("{levels: [node]}", "node", ("node",)), ("{levels: [node, core]}", "node,core", ("node", "core")),
    ("{levels: []}", "none", ()), ("{width: [4, 8]}", "4x8", (4, 8)), ("{width: 4}", "4", (4,)),
    ("{levels: [numa, 3]}", "numa,3", ("numa", 3)), ("{levels: [{width: 2}, node]}", "2,node", (2, "node")),
    ("[node, core]", "[node, core]", ("node", "core")), ("none", '{"levels": []}', ()),
]


@pytest.mark.parametrize(("text", "option", "levels"), LEVELS)
def test_levels(text: str, option: str, levels: tuple[str | int, ...]) -> None:
    expected = HierarchySpec(levels=tuple(
        LevelSpec(by="width", width=v) if isinstance(v, int) else LevelSpec(by=v) for v in levels))
    assert workflow(f"hierarchy: {text}\njobs: {{a: {{command: x}}}}").hierarchy == expected
    assert load_hierarchy(option) == expected


def test_level_settings(tmp_path: Path) -> None:
    file = tmp_path / "h.json"
    file.write_text(json.dumps({"hierarchy": {"distribution": "round_robin", "levels": [
        {"by": "node", "policy": {"name": "fcfs", "queue_depth": 2}, "distribution": "pull"}, {"width": 2}]}}))
    expected = HierarchySpec(distribution="round_robin", levels=(
        LevelSpec(by="node", policy=PolicySpec("fcfs", {"queue_depth": 2}), distribution="pull"),
        LevelSpec(by="width", width=2)))
    assert load_hierarchy(str(file)) == expected
    assert load_hierarchy(file.read_text()[len('{"hierarchy": '):-1]) == expected


def test_nested() -> None:
    found = load_hierarchy("{children: [{name: a, share: {nodes: 2, cores: 3, gpus: 8}, distribution: pull, "
                           "children: [{}, {policy: fcfs}]}, {name: b, count: 2}, {count: 2}]}")
    assert found == HierarchySpec(nested=NestedSpec(children=(
        NestedSpec(name="a", share_nodes=2, share_cores=3, share_gpus=8, distribution="pull",
                   children=(NestedSpec(), NestedSpec(policy=PolicySpec("fcfs")))),
        NestedSpec(name="b-0"), NestedSpec(name="b-1"), NestedSpec(), NestedSpec())))


def test_variables_keep_their_type() -> None:
    result = workflow("variables: {n: 4, t: 10, dir: /x, sub: '${dir}/y', yes_: true, q: '5'}\n"
                      "jobs:\n  j:\n    command: [a, '${sub}', '${n}${n}', '${q}']\n    retries: ${n}\n"
                      "    time_limit: ${t}m\n    parameters: {p: ['${n}', '${yes_}', '${q}'], r: {range: '${n}'}}\n"
                      "    resources: {cores: '${n}'}\n    env: {A: '${n}'}")
    (group,) = result.groups
    assert group.command == ("a", "/x/y", "44", "5")
    assert (group.retries, group.time_limit, group.request.cores, group.env) == (4, 600.0, 4, {"A": "4"})
    assert group.params.columns == (ListColumn((4, True, "5")), RangeColumn(0, 1, 4))


def test_set() -> None:
    text = ("variables: {n: 4, m: '${n}'}\nname: a\njobs:\n  s.1: &s {command: 'x ${m}', resources: &r {cores: 1}}\n"
            "  t: *s\n  u: {<<: *s, retries: 1}")
    result = workflow(text, n="6", name="b", jobs__t__resources__cores="2", jobs__t__time_limit="5m",
                      jobs__t__env__E="q",
                      jobs__t__after="[s.1]", policy__name="fcfs", **{"jobs__s.1__priority": "3"})
    first, second, third = result.groups
    assert [g.command for g in result.groups] == [("x", "6")] * 3
    assert result.name == "b"
    assert (first.priority, second.priority, third.priority) == (3, 16, 16)
    assert (first.request.cores, second.request.cores, third.request.cores) == (1, 2, 1)
    assert (first.time_limit, second.time_limit, second.env) == (0.0, 300.0, {"E": "q"})
    assert second.after == (Dependency("s.1"),)
    assert third.retries == 1


def test_set_takes_text_with_punctuation() -> None:
    text = "variables: {c: x, d: 1}\njobs: {j: {command: '${c}', parameters: {p: '${d}'}}}"
    (group,) = workflow(text, c="a: b # {job.id}", d="'5'").groups
    assert group.command == ("a:", "b", "#", "{job.id}")
    assert group.params.columns == (ListColumn(("5",)),)


def test_merge_keys() -> None:
    text = "jobs:\n  a: &a {command: x, retries: 1, priority: 2}\n  b: {retries: 3, <<: *a}\n  c: {<<: *a, retries: 4}"
    assert [(g.retries, g.priority) for g in workflow(text).groups] == [(1, 2), (3, 2), (4, 2)]


@pytest.mark.parametrize("encode", [
    lambda d: json.dumps(d), lambda d: json.dumps(d, indent="\t"), lambda d: json.dumps(d, separators=(",", ":")),
])
def test_json(encode: object) -> None:
    data = {"jobs": {"j": {"command": ["a", "é😀\t/", 1, 2.5, True, "{p}"], "parameters": {"p": {"range": [1, 5]}}}}}
    (group,) = load("w.json", text=encode(data).encode()).groups  # type: ignore[operator]
    assert group.command == ("a", "é😀\t/", "1", "2.5", "true", "{p}")
    assert group.count == 4


def test_utf16_and_byte_order_marks() -> None:
    text = "jobs: {j: {command: é}}"
    for encoding in ("utf-16", "utf-8-sig", "utf-8"):
        assert load("w.yaml", text=text.encode(encoding)).groups[0].command == ("é",)


def test_kinds_of_jobs_are_read_into_the_model() -> None:
    one, two = workflow("jobs:\n  a: {command: x, mpi: pmix, resources: {nodes: 2, tasks: 8}}\n"
                        "  b: {command: x, per: node, after: {a: any}}").groups
    assert (one.mpi, one.request.nodes, one.request.tasks) == ("pmix", 2, 8)
    assert two.request.per_node
    assert two.after == (Dependency("a", "any"),)


def test_policies_are_the_schedulers() -> None:
    assert {name: tuple(policy.options) for name, policy in KNOWN.items()} == POLICIES


def test_importing_is_cheap() -> None:
    code = "import sys, mpiflux.spec; print([m for m in ('numpy', 'yaml', 'asyncio') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


DOCS = Path(__file__).parents[2] / "docs" / "workflow-file.md"
SHOWN = re.findall(r"^```yaml\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", SHOWN)
def test_workflows_of_the_reference_are_right(text: str) -> None:
    assert workflow(text).groups


def test_the_reference_names_every_key() -> None:
    text = DOCS.read_text()
    assert [key for key in (*loader.KEYS, *jobs.KEYS, *jobs.RESOURCES, *generators.GENERATORS, *POLICIES)
            if f"`{key}`" not in text and f"`{{{key}:" not in text] == []
    assert [name for name in BUILTINS if f"`{{{name}}}`" not in text] == []
