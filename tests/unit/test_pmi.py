"""The PMI-1 server: what the protocol promises, and that nothing a client sends can break it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.model import pmi
from mpiflux.model.pmi import Abort, BarrierEntered, PmiServer, Reply, process_mapping


def server(size: int = 2, **more: object) -> PmiServer:
    return PmiServer(size, "kvs_0", process_mapping([0] * size), **more)  # type: ignore[arg-type]


def ask(s: PmiServer, rank: int, line: str) -> str:
    """The one reply to one request."""
    (action,) = s.feed(rank, line.encode() + b"\n")
    assert isinstance(action, Reply) and action.rank == rank
    assert action.data.endswith(b"\n") and action.data.count(b"\n") == 1
    return action.data.decode().rstrip("\n")


# -- the protocol --------------------------------------------------------------------------------------------


def test_bootstrap_conversation():
    s = server()
    assert ask(s, 0, "cmd=init pmi_version=1 pmi_subversion=1") == \
        "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0"
    assert ask(s, 0, "cmd=get_maxes") == "cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=1024"
    assert ask(s, 0, "cmd=get_appnum") == "cmd=appnum rc=0 appnum=0"
    assert ask(s, 0, "cmd=get_my_kvsname") == "cmd=my_kvsname rc=0 kvsname=kvs_0"
    assert ask(s, 0, "cmd=get_universe_size") == "cmd=universe_size rc=0 size=2"
    assert ask(s, 0, "cmd=get kvsname=kvs_0 key=PMI_process_mapping").endswith("value=(vector,(0,1,2))")
    assert ask(s, 0, "cmd=put kvsname=kvs_0 key=bc-0 value=tcp#[1]") == "cmd=put_result rc=0"
    assert s.feed(0, b"cmd=barrier_in\n") == []
    out = s.feed(1, b"cmd=barrier_in\n")
    assert sorted(out) == [Reply(0, b"cmd=barrier_out rc=0\n"), Reply(1, b"cmd=barrier_out rc=0\n")]
    assert s.initialized(0) and not s.initialized(1)
    assert ask(s, 1, "cmd=get kvsname=kvs_0 key=bc-0") == "cmd=get_result rc=0 value=tcp#[1]"
    assert ask(s, 0, "cmd=finalize") == "cmd=finalize_ack rc=0"
    assert s.finalized(0) and not s.finalized(1)


@pytest.mark.parametrize("offered, rc", [((1, 1), 0), ((1, 2), 0), ((2, 0), 0), ((1, 0), -1), ((0, 9), -1)])
def test_version_is_negotiated_to_1_1(offered, rc):
    reply = ask(server(), 0, "cmd=init pmi_version={} pmi_subversion={}".format(*offered))
    assert reply == f"cmd=response_to_init pmi_version=1 pmi_subversion=1 rc={rc}"


@pytest.mark.parametrize("request_line, reply", [
    ("cmd=get kvsname=kvs_0 key=PMI_hwloc_xmlfile", "cmd=get_result rc=-1 "),
    ("cmd=get", "cmd=get_result rc=-1 "),
    ("cmd=publish_name service=a port=b", "cmd=publish_result rc=-1 "),
    ("cmd=unpublish_name service=a", "cmd=unpublish_result rc=-1 "),
    ("cmd=lookup_name service=a", "cmd=lookup_result rc=-1 "),
    ("cmd=whatever_next x=1", "cmd=whatever_next_result rc=-1 "),
    ("cmd=put kvsname=kvs_0 key= value=a", "cmd=put_result rc=-1"),
    ("cmd=put kvsname=kvs_0 key=" + "k" * 64 + " value=a", "cmd=put_result rc=-1"),
    ("cmd=put kvsname=kvs_0 key=a value=" + "v" * 1024, "cmd=put_result rc=-1"),
    ("cmd=put kvsname=kvs_0 key=" + "k" * 63 + " value=" + "v" * 1023, "cmd=put_result rc=0"),
])
def test_what_is_unknown_or_too_long_is_refused(request_line, reply):
    assert (ask(server(), 0, request_line) + " ").startswith(reply)


def test_values_keep_equals_signs_and_spaces():
    s = server()
    ask(s, 0, "cmd=put kvsname=kvs_0 key=a value=x=y; z key=w")
    assert ask(s, 0, "cmd=get kvsname=kvs_0 key=a").endswith(" value=x=y; z key=w")
    ask(s, 0, "cmd=put value=first key=b kvsname=kvs_0")
    assert ask(s, 0, "cmd=get key=b kvsname=kvs_0").endswith(" value=first")


def test_spawn_is_refused_once_after_its_last_part():
    s = server()
    part = ("mcmd=spawn\nnprocs=2\nexecname=a cmd=abort\ntotspawns=2\nspawnssofar={}\n"
            "arg1=cmd=init\nargcnt=1\n")
    assert s.feed(0, part.format(1).encode() + b"endcmd\n") == []
    (reply,) = s.feed(0, part.format(2).encode() + b"endcmd\n")
    assert isinstance(reply, Reply) and reply.data.startswith(b"cmd=spawn_result rc=-1")
    assert ask(s, 0, "cmd=get_appnum") == "cmd=appnum rc=0 appnum=0"


@pytest.mark.parametrize("line, code, message", [
    (b"cmd=abort exitcode=7 message=out of memory\n", 7, "out of memory"),
    (b"cmd=abort exitcode=0\n", 0, "rank 1 called abort"),
    (b"cmd=abort\n", 1, "rank 1 called abort"),
    (b"cmd=abort exitcode=-2147483648\n", -2147483648, "rank 1 called abort"),
])
def test_abort(line, code, message):
    assert server().feed(1, line) == [Abort(1, code, message)]


@pytest.mark.parametrize("junk", [b"\n", b"hello\n", b"\xff\x00=\n", b"cmd=\n", b"GET / HTTP/1.1\r\n",
                                  b"x" * 5000, b"cmd=get key=" + b"x" * 5000 + b"\n"])
def test_garbage_ends_that_rank_only(junk):
    s = server()
    (action,) = s.feed(0, junk)
    assert isinstance(action, Abort) and action.rank == 0 and "rank 0" in action.message
    assert s.feed(0, b"cmd=get_appnum\n") == []
    assert ask(s, 1, "cmd=get_appnum") == "cmd=appnum rc=0 appnum=0"


def test_a_request_inside_the_barrier_breaks_the_lock_step():
    s = server()
    actions = s.feed(0, b"cmd=barrier_in\ncmd=barrier_in\n")
    assert len(actions) == 1 and isinstance(actions[0], Abort)
    assert s.feed(1, b"cmd=barrier_in\n") == []


def test_a_barrier_without_a_gone_rank_is_told():
    s = server(3)
    s.feed(0, b"cmd=barrier_in\n")
    assert s.stuck() == ()
    s.disconnect(1)
    assert s.stuck() == (0,)
    s.feed(2, b"cmd=barrier_in\n")
    assert s.stuck() == (0, 2)


# -- several machines ----------------------------------------------------------------------------------------


def test_two_servers_exchange_puts_at_the_barrier():
    mapping = process_mapping([0, 0, 1])
    a, b = PmiServer(3, "k", mapping, ranks=[0, 1]), PmiServer(3, "k", mapping, ranks=[2])
    for s, rank in ((a, 0), (a, 1), (b, 2)):
        ask(s, rank, f"cmd=put kvsname=k key=bc-{rank} value=v{rank}")
    assert a.feed(0, b"cmd=barrier_in\n") == []
    assert a.feed(1, b"cmd=barrier_in\n") == [BarrierEntered({b"bc-0": b"v0", b"bc-1": b"v1"})]
    assert b.feed(2, b"cmd=barrier_in\n") == [BarrierEntered({b"bc-2": b"v2"})]
    merged = {b"bc-0": b"v0", b"bc-1": b"v1", b"bc-2": b"v2"}
    assert {action.rank for action in a.complete_barrier(merged)} == {0, 1}
    assert {action.rank for action in b.complete_barrier(merged)} == {2}
    assert ask(a, 0, "cmd=get kvsname=k key=bc-2") == "cmd=get_result rc=0 value=v2"
    a.feed(0, b"cmd=barrier_in\n")
    assert a.feed(1, b"cmd=barrier_in\n") == [BarrierEntered({})], "puts are handed up once"


@pytest.mark.parametrize("ranks", [[], [3], [-1, 0]])
def test_ranks_outside_the_program_are_refused(ranks):
    with pytest.raises(ValueError, match="of a program of 3"):
        PmiServer(3, "k", "", ranks=ranks)


@pytest.mark.parametrize("name", ["", "a b", "a=b", "x" * 256, "é"])
def test_bad_kvsname_is_refused(name):
    with pytest.raises(ValueError, match="key-value space"):
        PmiServer(1, name, "")


# -- fuzz ----------------------------------------------------------------------------------------------------

_pieces = st.sampled_from([b"cmd=", b"mcmd=", b"init", b"put", b"get", b"barrier_in", b"abort", b"finalize",
                           b"spawn", b"endcmd", b"\n", b" ", b"=", b"key=", b"value=", b"kvsname=k",
                           b"exitcode=", b"totspawns=", b"spawnssofar=", b"pmi_version=", b"9" * 30, b"-", b"x" * 1200])
_input = st.lists(st.one_of(_pieces, st.binary(max_size=8)), max_size=30).map(b"".join)


@given(st.lists(st.tuples(st.integers(0, 2), _input), max_size=12))
def test_no_bytes_raise_and_memory_is_bounded(chunks):
    s = server(3)
    for rank, data in chunks:
        for action in s.feed(rank, data):
            assert isinstance(action, (Reply, Abort))
            if isinstance(action, Reply):
                assert action.data.endswith(b"\n") and action.data.count(b"\n") == 1
                assert len(action.data) <= pmi.LINE_MAX
        assert len(s._clients[rank].buffer) <= pmi.LINE_MAX


_lines = st.lists(st.sampled_from([
    b"cmd=init pmi_version=1 pmi_subversion=1", b"cmd=put kvsname=k key=a value=1",
    b"cmd=get kvsname=k key=a", b"cmd=get kvsname=k key=b", b"cmd=put kvsname=k key=b value=2 3",
    b"cmd=finalize", b"cmd=get_maxes", b"cmd=odd",
    b"mcmd=spawn\ntotspawns=1\nspawnssofar=1\nendcmd", b"junk"]), max_size=8)


@given(_lines, st.data())
def test_cutting_the_stream_anywhere_changes_nothing(lines, data):
    stream = b"".join(line + b"\n" for line in lines)
    whole = server(2).feed(0, stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    s, pieces = server(2), []
    for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        pieces += s.feed(0, stream[a:b])
    assert pieces == whole


# -- process mapping -----------------------------------------------------------------------------------------


def expand(mapping: str) -> list[int]:
    """Ranks' nodes from a mapping, read as RFC 13 defines it."""
    assert re.fullmatch(r"\(vector(,\(\d+,\d+,\d+\))+\)", mapping)
    nodes = []
    for first, count, ppn in re.findall(r"\((\d+),(\d+),(\d+)\)", mapping):
        for node in range(int(first), int(first) + int(count)):
            nodes += [node] * int(ppn)
    return nodes


@pytest.mark.parametrize("layout, mapping", [
    ([0, 0, 1, 1], "(vector,(0,2,2))"),
    ([0, 1, 0, 1], "(vector,(0,2,1),(0,2,1))"),
    ([0, 0, 0, 0, 1, 1, 1, 1], "(vector,(0,2,4))"),
    ([0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3], "(vector,(0,2,2),(2,2,4))"),
    ([0, 1, 2, 3, 0, 1, 2, 3, 2, 3, 2, 3], "(vector,(0,4,1),(0,4,1),(2,2,1),(2,2,1))"),
    ([n for n in range(4096) for _ in range(256)], "(vector,(0,4096,256))"),
    ([0, 0, 1], "(vector,(0,1,2),(1,1,1))"),
    (["b", "b", "a", "a"], "(vector,(0,2,2))"),
    ([], ""),
])
def test_mapping_of_rfc_13_and_slurm(layout, mapping):
    assert process_mapping(layout) == mapping


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_mapping_says_the_layout(layout):
    order = list(dict.fromkeys(layout))
    assert expand(process_mapping(layout)) == [order.index(node) for node in layout]


def test_names_of_mpichs_segments():
    assert pmi.mpich_segments("abc1", 2) == ["mpich_shm_9934264e_0", "mpich_shm_9934264e_1",
                                             "mpich_vci_9934264e_0", "mpich_vci_9934264e_1"]


def test_a_mapping_too_long_for_a_client_is_unknown():
    assert process_mapping([0, 1, 1] * 2000) == ""
    s = PmiServer(1, "k", "")
    assert ask(s, 0, "cmd=get kvsname=k key=PMI_process_mapping").startswith("cmd=get_result rc=-1")
