"""Secrets: who gets their values, and how a workflow file names them."""

from __future__ import annotations

import pytest

from mpiflux.instance.vault import Vault, missing
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Declare, decode, encode
from mpiflux.model.requests import NewGroup
from mpiflux.spec import WorkflowError, load


def group(number: int, *secrets: str) -> JobGroup:
    return JobGroup(number=number, name=f"g{number}", first_id=number + 1, count=1, command=("true",), secrets=secrets)


def test_each_group_gets_what_it_names_and_inherits_no_other() -> None:
    vault = Vault([group(0, "A"), group(1), group(2, "A", "B")], {"A": "1", "B": "\udcff", "C": "3"})
    vault.keep(3, {"C": b"own"})
    found = [vault.of(one) for one in (group(0, "A"), group(1), group(2, "A", "B"), group(3, "C"), group(4, "C"))]
    assert [one.values for one in found] == [{"A": b"1"}, {}, {"A": b"1", "B": b"\xff"}, {"C": b"own"}, {}]
    assert {one.hidden for one in found} == {("A", "B")}
    vault.drop(3)
    assert not vault.of(group(3, "C")).values
    assert Vault().of(group(0)).values == {} and missing(["A", "X", "A"], {"A": ""}) == ["X"]


def test_no_message_shows_a_value_and_all_carry_it() -> None:
    declared = Declare(group(0, "A"), sealed=Vault([group(0, "A")], {"A": "hush"}).of(group(0, "A")))
    assert "hush" not in repr(declared) and "hush" not in repr(NewGroup(command=("x",), secrets={"A": b"hush"}))
    assert decode(encode([(1, 2, declared)]))[0][2].sealed.values == {"A": b"hush"}


def test_names_in_a_workflow_file() -> None:
    flow = load("w.yaml", text=b"secrets: [A]\njobs: {a: {command: x, secrets: B}, b: {command: y}}\n")
    assert [one.secrets for one in flow.groups] == [("A", "B"), ("A",)]


@pytest.mark.parametrize(("text", "place"), [
    ("secrets: [A]\njobs: {a: {command: x, env: {A: 1}}}", "1:11"),
    ("secrets: {A: hush}\njobs: {a: {command: x}}", "1:10"),
    ("jobs: {a: {command: x, secrets: [A=hush]}}", "1:34"),
    ("jobs: {a: {command: x, secrets: [MPIFLUX_hush]}}", "1:34"),
])
def test_mistakes_are_told_with_their_place_and_never_with_a_value(text: str, place: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        load("w.yaml", text=text.encode())
    assert f"w.yaml:{place}: " in str(caught.value) and "hush" not in str(caught.value)
