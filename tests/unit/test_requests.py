"""What clients and instances say to each other: framing, versions, and input that is none."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.model import messages
from mpiflux.model import requests as r
from mpiflux.model.frames import LIMIT, BadFrame, Unpacker, pack
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.params import ParamTable, RangeColumn


@given(st.lists(st.binary(max_size=300), max_size=10), st.lists(st.integers(0, 4000), max_size=10))
def test_frames_survive_any_cut(frames: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(pack, frames))
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    unpacker = Unpacker()
    got = [frame for low, high in pairwise(places) for frame in unpacker.feed(stream[low:high])]
    assert got == frames and unpacker.waiting == 0


def test_a_claim_that_is_too_long_is_refused_before_it_comes() -> None:
    with pytest.raises(BadFrame, match=str(LIMIT)):
        Unpacker().feed((LIMIT + 1).to_bytes(4, "little"))
    assert Unpacker().feed(LIMIT.to_bytes(4, "little")) == []
    with pytest.raises(BadFrame):
        Unpacker(10).feed(pack(bytes(11)))
    with pytest.raises(ValueError, match="in pieces"):
        pack(bytes(LIMIT + 1))


def test_another_version_is_named() -> None:
    assert r.decode_hello(r.encode(r.Hello(r.VERSION, keep=True))).keep
    other = msgspec.msgpack.encode({"type": "hello", "version": r.VERSION + 7, "new": {"field": 1}})
    with pytest.raises(r.BadRequest, match=f"version {r.VERSION + 7}.*the same mpiflux"):
        r.decode_hello(other)
    # a version whose Hello looks different altogether
    with pytest.raises(r.BadRequest, match="version 99"):
        r.decode_hello(msgspec.msgpack.encode({"type": "greeting", "version": 99}))


@given(st.binary(max_size=300))
def test_garbage_is_a_bad_request(data: bytes) -> None:
    for decode in (r.decode_hello, r.decode_call, r.decode_answer):
        try:
            decode(data)
        except r.BadRequest:
            continue


def test_depth_is_a_bad_request() -> None:
    with pytest.raises(r.BadRequest):
        r.decode_call(b"\x92\x01" + b"\x91" * 100_000)


@given(st.integers(0, 1 << 40), st.text(max_size=20), st.binary(max_size=50))
def test_calls_and_answers_come_back_as_they_were(number: int, text: str, data: bytes) -> None:
    for op in (r.Get(text, True), r.Publish(text, data), r.Cancel(r.Select(name=text)),
               r.Submit((r.NewGroup(command=(text,), env={text: text}, after=(r.After("any", (1, 2)),)),))):
        assert r.decode_call(r.encode(r.Call(number, op))) == r.Call(number, op)
    for answer in (r.Reply(number, [data, text]), r.Error(number, "key", text), r.Goodbye(text, over=True)):
        assert r.decode_answer(r.encode(answer)) == answer


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))))
def test_bytes_from_another_rank_are_a_batch_or_an_error(damage: bytes | tuple[int, bytes]) -> None:
    group = JobGroup(number=0, name="g", first_id=1, count=3, command=("x", "{p}"), secrets=("K",),
                     params=ParamTable(("p",), (RangeColumn(0, 1, 3),)))
    good = messages.encode([(1, 2, messages.Declare(group, sealed=messages.Sealed({"K": b"v"}))),
                            (3, 4, messages.Submit((messages.Chunk(0, 0, 3, 1, 1),)))])
    if isinstance(damage, bytes):
        data = damage
    else:
        at = damage[0] % len(good)
        data = good[:at] + damage[1] + good[at + len(damage[1]):]
    try:
        for _, _, message in messages.decode(data):
            assert isinstance(repr(message), str)
    except ValueError as error:
        assert "message" in str(error)
