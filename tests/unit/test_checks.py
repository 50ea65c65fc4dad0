"""A workflow against the machine that is here: everything that is wrong with it and with the options, in one answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpiflux.instance.checks import check
from mpiflux.instance.options import RunError, RunOptions
from mpiflux.instance.site import RankReport, Site, survey

JOBS = """\
jobs:
  fits: {command: x}
  big:
    command: x
    resources: {cores: 64}
"""
BIG = "flow.yaml:5:16: job 'big' asks for 64 cores a task; the largest node has 4, in the whole instance"


def site(nodes: int = 2) -> Site:
    return survey([RankReport(f"n{i}", tuple(((cpu,), 0) for cpu in range(4)), (), 1 << 30) for i in range(nodes)])


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is told of a text as a workflow file, by line."""
    monkeypatch.chdir(tmp_path)

    def tell(text: str, others: tuple[str, ...] = (), **options) -> list[str]:
        Path("flow.yaml").write_text(text)
        with pytest.raises(RunError) as error:
            check(RunOptions("flow.yaml", **options), site(), others)
        assert error.value.status == 2
        return str(error.value).splitlines()

    return tell


def starts(lines: list[str], *heads: str) -> None:
    assert len(lines) == len(heads), lines
    for line, head in zip(lines, heads, strict=True):
        assert line.startswith(head), (line, head)


def test_jobs_that_are_too_large_are_told_with_their_place_and_the_tree(tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text(f"{JOBS}  named: {{command: x, per: node, resources: {{tasks: 5}}}}\n  also: {{command: x}}\n")
    checked = check(RunOptions(str(file), overrides={"jobs.also.resources.gpus": "1"}), site())
    assert [text.partition(" asks")[0] for text in checked.misfits] == ["job 'big'", "job 'named'", "job 'also'"]
    assert len(checked.plan.schedulers) == 3
    starts(checked.mistakes.splitlines(), "--set jobs.also.resources.gpus: job 'also'", f"{tmp_path}/{BIG}",
           f"{file}:6:45: job 'named'")


def test_what_only_the_machine_shows_is_told_with_what_the_file_alone_shows(told) -> None:
    starts(told(f"policy: fcsf\n{JOBS}  c: {{comand: x}}\n", ("the directory is full",)), "the directory is full",
           "flow.yaml:1:9: policy: 'fcsf'", "flow.yaml:6:16: job 'big'", "flow.yaml:7:6: job c needs",
           "flow.yaml:7:7: job c has no key")


def test_trees_and_policies_are_told_together(told) -> None:
    tree = """\
hierarchy:
  children: [{share: {nodes: 9}}, {share: {nodes: 1}, children: [{share: {cores: 5}}]}, {policy: none.such:Class},
             {distribution: "none.such:Class", share: {cores: 99}}]
policy: "none.other:Class"
"""
    starts(told(tree + JOBS), "flow.yaml:2:3: hierarchy: child number 1 asks for 9 nodes",
           "flow.yaml:2:3: hierarchy: child number 4 asks for 99 cores",
           "flow.yaml:2:98: policy none.such:Class: cannot be loaded", "flow.yaml:3:29: distribution none.such:Class",
           "flow.yaml:4:9: policy none.other:Class: cannot be loaded", "flow.yaml:9:16: job 'big'")
    deep = "hierarchy: {children: [{children: [{share: {cores: 9}}]}, {children: [{share: {gpus: 1}}]}]}\n"
    starts(told(deep + JOBS), "flow.yaml:1:12: hierarchy: child number 1 asks for 9 cores",
           "flow.yaml:1:12: hierarchy: child number 1 asks for 1 GPU", "flow.yaml:6:16: job 'big'")


def test_options_are_blamed_for_what_they_say(told) -> None:
    starts(told(JOBS, policy="fcsf", hierarchy="corre", overrides={"n": "1"}), "--set n: the workflow has no variable",
           "--hierarchy: 'corre' is neither", "--policy: 'fcsf' is not known; did you mean 'fcfs'?")
    starts(told(JOBS, policy="none.such:Class", hierarchy="{children: [{share: {nodes: 9}}]}"),
           "--policy: policy none.such:Class: cannot be loaded", "--hierarchy:1:1: hierarchy: child number 1", BIG)
    Path("tree.yaml").write_text("hierarchy:\n  levels: [{by: node, policy: 'none.such:Class'}]\n")
    starts(told(JOBS, hierarchy="tree.yaml"), "tree.yaml:2:31: policy none.such:Class", BIG)


def test_one_mistake_is_not_told_as_two(told) -> None:
    # the amount that could not be read may be enough, and so may be what a misspelt option was to set
    starts(told("resources: {instance: {license: ten}}\njobs: {a: {command: x, resources: {license: 3}}}\n"),
           "flow.yaml:1:33: license: expected")
    starts(told(JOBS, overrides={"jobs.bigg.resources.cores": "2"}), "--set jobs.bigg.resources.cores: there is no job")
    starts(told("jobs: {a: {command: x, resources: {cores: 64, tasks: no}}}\n"), "flow.yaml:1:35: job 'a' asks",
           "flow.yaml:1:54: tasks: expected")


def test_a_file_that_cannot_be_read_does_not_hide_the_options(told) -> None:
    starts(told("jobs: [", policy="fcsf"), "--policy: 'fcsf'", "flow.yaml:1:8: malformed")


def test_no_core_is_no_mistake_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(JOBS)
    with pytest.raises(RunError, match=r"^there are no cores to schedule"):
        check(RunOptions(str(tmp_path / "flow.yaml")), survey([RankReport("n0", (), (), 1 << 30)]))
