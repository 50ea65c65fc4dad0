"""Values of Flux's options."""

from __future__ import annotations

import argparse

import pytest

from mpiflux.cli.fluxwords import environment, file_name, minutes, without
from mpiflux.client.submission import new_group
from mpiflux.model import requests as r


@pytest.mark.parametrize(("text", "value"), [("1", 60), ("0.5", 30), (".5", 30), ("2.", 120), ("30s", 30), ("10m", 600),
                                             ("1h30m", 5400), ("01:30:00", 5400), ("0", 0)])
def test_a_bare_number_is_minutes(text: str, value: float) -> None:
    assert minutes(text) == value


@pytest.mark.parametrize("text", ["", "x", "-1", "1e", "9" * 30, "٣"])
def test_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        minutes(text)


@pytest.mark.parametrize(("text", "made"), [
    ("job-{{id}}.out", "job-{job.id}.out"), ("{{jobid}}.{{name}}", "{job.id}.{job.name}"), ("{job.id}", "{job.id}"),
    ("{{other}} {{ id}} {{}}", "{{other}} {{ id}} {{}}"), ("plain", "plain")])
def test_file_names(text: str, made: str) -> None:
    assert file_name(text) == made


def test_a_tag_that_is_not_there_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="taskid"):
        file_name("out.{{taskid}}")


HERE = {"HOME": "/home/me", "FOO_A": "1", "FOO_B": "2", "MPIFLUX_URI": "u", "CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.parametrize(("rules", "sets", "removed"), [
    (["A=1", "B="], {"A": "1", "B": ""}, []), (["HOME"], {"HOME": "/home/me"}, []), (["-HOME"], {}, ["HOME"]),
    (["FOO_*"], {"FOO_A": "1", "FOO_B": "2"}, []), (["-FOO_*"], {}, ["FOO_A", "FOO_B"]), (["-FAR"], {}, ["FAR"]),
    (["-*"], {}, ["HOME", "FOO_A", "FOO_B"]), (["-*", "HOME"], {"HOME": "/home/me"}, ["FOO_A", "FOO_B"]),
    (["HOME=/x", "-HOME"], {}, ["HOME"]), (["-HOME", "HOME=/x"], {"HOME": "/x"}, []), (["NONE*"], {}, []),
    (["-MPIFLUX_URI"], {}, ["MPIFLUX_URI"]), (["A=b=c"], {"A": "b=c"}, []),
])
def test_environment(rules: list[str], sets: dict[str, str], removed: list[str]) -> None:
    assert environment(rules, HERE) == (sets, removed)


@pytest.mark.parametrize("rule", ["FAR", "=1", "", "-", "-A=1", "^file"])
def test_wrong_rules(rule: str) -> None:
    with pytest.raises(ValueError, match="--env="):
        environment([rule], HERE)


def test_without() -> None:
    assert without(["a", "b"], []) == ["a", "b"]
    assert without(["a"], ["X", "Y"]) == ["env", "-u", "X", "-u", "Y", "a"]


@pytest.mark.parametrize("text", ["after:3", "singleton", "afterexcept:3", "begin-time:5"])
def test_dependencies_that_are_not_there_are_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition(":")[0]):
        new_group(["true"], {"after": [text]})


def test_dependencies() -> None:
    after = new_group(["true"], {"after": ["afterok:3", "afterany:4:5", "afternotok:6,7", "sim"]}).after
    assert after == (r.After("ok", (3,)), r.After("any", (4, 5)), r.After("not_ok", (6, 7)), r.After("ok", group="sim"))
