"""``bulksubmit``: from a line in the words of GNU parallel and Flux to commands."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.cli.bulk import BadInputs, commands

TEXT = st.text(st.characters(blacklist_characters="{}\n"), min_size=1, max_size=8).filter(
    lambda text: not text.startswith(":::"))


def bulk(line: str, stdin: str = "") -> list[list[str]]:
    return commands(line.split(), stdin.splitlines(keepends=True))


@pytest.mark.parametrize(("line", "made"), [
    ("echo {} ::: a b", ["echo a", "echo b"]),
    ("echo ::: a b", ["echo a", "echo b"]),
    ("echo {1}-{0} ::: a b ::: 1 2", ["echo 1-a", "echo 2-a", "echo 1-b", "echo 2-b"]),
    ("echo {}{} ::: a b :::+ 1 2", ["echo a1", "echo b2"]),
    ("x {0} {1} {2} ::: a b :::+ 1 2 ::: c", ["x a 1 c", "x b 2 c"]),
    ("cp {} {.%}.o {./} {.//} {./%} ::: d/a.c b", ["cp d/a.c d/a.o a.c d a", "cp b b.o b . b"]),
    ("x {0.%} {0./%} ::: d/a.c", ["x d/a a"]),
    ("x {seq} {seq1} {} ::: a b", ["x 0 1 a", "x 1 2 b"]),
    ("x {notours} {a.b} {} ::: 1", ["x {notours} {a.b} 1"]),
    ("::: hostname date", ["hostname", "date"]),
])
def test_lines(line: str, made: list[str]) -> None:
    assert [" ".join(words) for words in bulk(line)] == made


def test_lines_of_stdin_and_of_files(tmp_path: Path) -> None:
    assert bulk("echo {}", "a b\n\nc\n") == [["echo", "a b"], ["echo", "c"]]
    assert commands([], ["sleep '1 2'\n"]) == [["sleep", "1 2"]]
    (tmp_path / "f").write_text("x\ny\n")
    assert bulk(f"echo {{0}} {{1}} :::: {tmp_path}/f ::::+ -", "1\n2\n") == [["echo", "x", "1"], ["echo", "y", "2"]]
    assert bulk("echo {}", "") == []


@pytest.mark.parametrize(("line", "said"), [
    ("echo {1} ::: a", "there are 1 inputs"), ("echo :::", "no inputs"), ("echo ::: a b :::+ 1", "cannot go along"),
    ("echo :::+ a", "no list before"), ("echo :::: /no/such/file", "No such file"), ("::: 'a", "cannot be split"),
])
def test_what_is_wrong_is_said(line: str, said: str) -> None:
    with pytest.raises(BadInputs, match=said):
        bulk(line)


@given(st.lists(st.lists(TEXT, min_size=1, max_size=4), min_size=1, max_size=3))
def test_inputs_are_words_whatever_is_in_them(lists: list[list[str]]) -> None:
    words = ["c", *(f"{{{i}}}" for i in range(len(lists)))]
    for one in lists:
        words += [":::", *one]
    assert commands(words, []) == [["c", *row] for row in itertools.product(*lists)]
