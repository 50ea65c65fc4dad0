"""Wrong workflow files: told with their place, all at once, by every rank together only once, and nothing starts."""

from __future__ import annotations

import os
import re

import pytest

from tests.support.runs import Place

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(12)) + (
    "jobs: {j: {command: *m}}\n")
NEWLINE = b"\n"
MARK = "¦"
"""Stands in a text where the error must point, and is taken out."""
CASES: dict[str, tuple[str | bytes, str]] = {
    "malformed": ("jobs:\n  a: {command: touch started\n¦", "malformed"),
    "tab": ("jobs:\n¦\ta: touch started\n", "tab"),
    "not-text": (b"jobs: {a: {command: touch \xc2\xa6\xff}}\n", "text"),
    "empty": ("¦", "empty"),
    "list": ("¦- a\n- b\n", "mapping"),
    "unknown-key": ("jobs:\n  a:\n    ¦comand: touch started\n", "'command'"),
    "unknown-top": ("¦hierachy: none\njobs: {a: {command: touch started}}\n", "'hierarchy'"),
    "wrong-type": ("jobs:\n  a: {command: touch started, retries: ¦many}\n", "many"),
    "negative": ("jobs:\n  a: {command: touch started, resources: {cores: ¦-3}}\n", "-3"),
    "absurd": ("jobs:\n  a: {command: touch started, retries: ¦99999999999999999999}\n", "99999999999999999999"),
    "zero-cores": ("jobs:\n  a: {command: touch started, resources: {cores: ¦0}}\n", "at least 1"),
    "nan-limit": ("jobs:\n  a: {command: touch started, time_limit: ¦.nan}\n", "nan"),
    "undefined-name": ("jobs:\n  a:\n    command: touch started ¦{nope}\n", "nope"),
    "undefined-in-env": ("jobs:\n  a:\n    command: touch started\n    env: {X: 'is ¦{xx}'}\n"
                         "    parameters: {x: [1]}\n", "xx"),
    "stray-brace": ("jobs:\n  a:\n    command: touch started ¦}\n", "}}"),
    "empty-parameter": ("jobs:\n  a:\n    command: touch started\n    parameters: {x: ¦[]}\n", "x"),
    "empty-range": ("jobs:\n  a:\n    command: touch started\n    parameters: {x: {range: ¦0}}\n", "x is empty"),
    "unequal-zip": ("jobs:\n  a:\n    command: touch started\n    parameters: ¦{x: [1, 2], y: [1, 2, 3]}\n"
                    "    sampling: zip\n", "zip"),
    "after-nothing": ("jobs:\n  train:\n    command: touch started\n  b:\n    command: touch started\n"
                      "    after: ¦trian\n", "'train'"),
    "ring": ("jobs:\n  a: {command: touch started, after: ¦c}\n  b: {command: touch started, after: a}\n"
             "  c: {command: touch started, after: b}\n", "a -> c -> b -> a"),
    "itself": ("jobs:\n  a: {command: touch started, after: ¦a}\n", "itself"),
    "missing-column": ("jobs:\n  a:\n    command: touch started\n    parameters: {x: {csv: t.csv, column: ¦maas}}\n",
                       "mass"),
    "missing-csv": ("jobs:\n  a:\n    command: touch started\n    parameters: {x: {csv: ¦u.csv, column: m}}\n",
                    "u.csv"),
    "duplicate-key": ("jobs:\n  a: {command: touch started}\n  ¦a: {command: touch started}\n", "twice"),
    "python-tag": ("name: ¦!!python/object/apply:os.system ['touch started']\njobs: {a: {command: x}}\n", "refused"),
    "no-command": ("jobs:\n  a: ¦{retries: 1}\n", "command"),
    "unclosed-quote": ("jobs:\n  a: {command: ¦\"touch 'started\"}\n", "quot"),
    "future-format": ("mpiflux: ¦2\njobs: {a: {command: touch started}}\n", "2"),
    "policy": ("policy: ¦fcsf\njobs: {a: {command: touch started}}\n", "'fcfs'"),
    "levels": ("hierarchy: {levels: ¦[core, node]}\njobs: {a: {command: touch started}}\n", "coarse"),
    "absurd-range": ("jobs:\n  a:\n    command: touch started\n    parameters: {x: {range: ¦1e30}}\n", "1e30"),
    "giant-list": ("jobs:\n  a:\n    command: touch started\n    parameters: {x: {uniform: ¦[0, 1, 100000000000]}}\n",
                   "100"),
    "bad-env": ("jobs:\n  a: {command: touch started, env: {¦MPIFLUX_JOB_ID: x}}\n", "MPIFLUX_JOB_ID"),
    "priority": ("jobs:\n  a: {command: touch started, priority: ¦32}\n", "31"),
}


@pytest.fixture
def prepared(place: Place) -> Place:
    place.write("t.csv", "mass,time\n1,2\n")
    return place


@pytest.mark.parametrize("name", CASES)
def test_told_with_its_place_and_nothing_starts(prepared: Place, name: str) -> None:
    marked, word = CASES[name]
    data = marked if isinstance(marked, bytes) else marked.encode()
    before, _, after = data.partition(MARK.encode())
    prepared.write("flow.yaml", before + after)
    told = refused(prepared)
    place = f"{before.count(NEWLINE) + 1}:{len(before.decode().rpartition(chr(10))[2]) + 1}"
    assert told[0].startswith(f"flow.yaml:{place}: "), told
    assert word in told[0], told


def test_aliases_that_expand_to_gigabytes(prepared: Place) -> None:
    prepared.write("flow.yaml", BOMB)
    told = refused(prepared, 20)
    assert re.match(r"flow\.yaml:\d+:\d+: .*expand", told[0]), told


def refused(place: Place, timeout: float = 60) -> list[str]:
    """What is told of a workflow that is not to run."""
    done = place.call("run", "flow.yaml", "--run-dir", "never", status=2, timeout=timeout)
    assert done.stdout == "" and "Traceback" not in done.stderr
    return done.stderr.splitlines()


def test_validate_and_run_say_the_same_and_everything_at_once(prepared: Place) -> None:
    prepared.write("flow.yaml", "naem: x\njobs:\n  a:\n    command: echo {y}\n    time_limit: 10q\n    after: [b, c]\n")
    told = prepared.call("run", "flow.yaml", status=2).stderr
    assert [line.split(": ")[0] for line in told.splitlines()] == [
        "flow.yaml:1:1", "flow.yaml:4:19", "flow.yaml:5:17", "flow.yaml:6:13", "flow.yaml:6:16"]
    checked = prepared.call("validate", "flow.yaml", status=2)
    assert checked.stdout + checked.stderr == told
    assert prepared.call("run", "flow.yaml", "--dry-run", status=2).stderr == told


def test_a_run_directory_that_holds_another_run(place: Place) -> None:
    run = place.run({"jobs": {"a": {"command": "true"}}})
    place.write("other.yaml", "jobs: {b: {command: touch started}}\n")
    name = run.directory.name
    again = place.call("run", "other.yaml", "--run-dir", name, status=2)
    assert name in again.stderr and "--resume" in again.stderr and "Traceback" not in again.stderr
    resumed = place.call("run", "other.yaml", "--run-dir", name, "--resume", status=2)
    assert "other.yaml" in resumed.stderr and "Traceback" not in resumed.stderr
    assert run.results() == {"COMPLETED": 1}


def test_a_directory_whose_name_is_no_text(place: Place) -> None:
    odd = os.fsdecode(b"d\xff")
    place.write(f"{odd}/flow.yaml", "jobs: {a: {command: touch started}}\n")
    place.write("flow.yaml", "jobs: {a: {command: touch started}}\n")
    for words in ((f"{odd}/flow.yaml",), ("flow.yaml", "--run-dir", f"{odd}/r")):
        told = place.call("run", *words, status=2).stderr
        assert "UTF-8" in told and r"d\udcff" in told and "Traceback" not in told
    assert os.listdir(place.path / odd) == ["flow.yaml"]


def test_a_misfit_names_the_job_and_a_dry_run_shows_it_beside_the_rest(place: Place) -> None:
    place.write("flow.yaml", {"jobs": {"fits": {"command": "touch s"}, "big": {
        "command": "touch s", "resources": {"cores": 64}}, "gpu": {"command": "touch s", "resources": {"gpus": 1}}}})
    told = place.call("run", "flow.yaml", "--cores-per-node", "4", "--policy", "fcsf", status=2).stderr
    misfits = r"flow\.yaml:\d+:\d+: job 'big' .*\nflow\.yaml:\d+:\d+: job 'gpu' .*\n"
    assert re.fullmatch(f"--policy: 'fcsf' .*\n{misfits}", told)
    dry = place.call("run", "flow.yaml", "--cores-per-node", "4", "--dry-run", status=2)
    assert re.fullmatch(misfits, dry.stderr)
    assert "'big'" in dry.stdout and "root" in dry.stdout and "3 jobs" in dry.stdout


def test_a_dry_run_starts_nothing_and_draws_the_tree(place: Place) -> None:
    place.write("flow.yaml", {"name": "dry", "jobs": {
        "a": {"command": "touch started", "parameters": {"i": {"range": 1000}, "j": {"range": 1000}}},
        "b": {"command": "touch started", "after": "a", "resources": {"cores": 2}}}})
    done = place.call("run", "flow.yaml", "--dry-run", "--cores-per-node", "8", "--hierarchy", "2x2")
    for word in ("1,000,001 jobs", "i[1,000]", "after a", "cores 0-3", "cores 6-7", "every job fits"):
        assert word in done.stdout, word
