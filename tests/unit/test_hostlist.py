"""Hostlists against RFC 29's own test vectors, Slurm's habits, and round trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model import hostlist


@pytest.mark.parametrize(("text", "names"), [
    ("", ""), ("foox,fooy,fooz", "foox,fooy,fooz"), ("[1-3,5-6]", "1,2,3,5,6"),
    ("foo[1-5]", "foo1,foo2,foo3,foo4,foo5"),
    ("foo[0-2]-eth2", "foo0-eth2,foo1-eth2,foo2-eth2"),
    ("foo1,foo1,foo1", "foo1,foo1,foo1"), ("[00-02]", "00,01,02"),
    ("[00-2]", "00,01,02"), ("foo[1,1,2,1]", "foo1,foo1,foo2,foo1"), ("[005,4,11-13]", "005,004,011,012,013"),
    ("r[0-1]n[8-9],x", "r0n8,r0n9,r1n8,r1n9,x"), ("n[1,02]", "n1,n02"),
])
def test_decode(text: str, names: str) -> None:
    assert hostlist.decode(text) == (names.split(",") if names else [])


@pytest.mark.parametrize(("names", "text"), [
    ([f"node{i:03}" for i in range(1, 33)], "node[001-032]"),
    (["a1", "a2", "a3", "a5", "b7"], "a[1-3,5],b7"),
    (["n9", "n10", "n11"], "n[9-11]"),
    (["n09", "n10"], "n[09-10]"),
    (["n099", "n100"], "n[099-100]"),
    (["n99", "n0100"], "n99,n0100"),
    (["n100", "n099"], "n100,n099"),
    (["n3", "n2", "n1"], "n[3,2,1]"),
    (["n1", "n1"], "n[1,1]"),
    (["login", "n1", "login"], "login,n1,login"),
    (["rack1-n1", "rack1-n2", "rack2-n1"], "rack1-n[1-2],rack2-n1"),
    (["0", "1"], "[0-1]"),
    ([], ""),
])
def test_encode(names: list[str], text: str) -> None:
    assert hostlist.encode(names) == text
    assert hostlist.decode(text) == names


@pytest.mark.parametrize("text", [
    "a[1-3", "a1-3]", "a[[1]]", "a[]", "a[3-1]", "a[x]", "a[1-]", "a,,b", ",a", "a,", "a b", "a[1 ]",
    "a[0-99999999]",
    "a[0-9999][0-9999]", "a[1-2-3]", "a[²]",
])
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match="hostlist"):
        hostlist.decode(text)


@pytest.mark.parametrize("name", ["", "a,b", "a[1]", "a b", "a\n"])
def test_unfit_names(name: str) -> None:
    with pytest.raises(ValueError, match="hostlist"):
        hostlist.encode(["ok", name])


@given(st.lists(st.from_regex(r"[a-c]?-?(0{0,2}[0-9]{1,3})?x?", fullmatch=True).filter(bool), max_size=30))
def test_round_trip(names: list[str]) -> None:
    assert hostlist.decode(hostlist.encode(names)) == names
