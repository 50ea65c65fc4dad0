from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.store.kvs import (
    KEY_BYTES,
    BadKey,
    Check,
    Conflict,
    Delete,
    Full,
    Kvs,
    KvsError,
    NoKey,
    Put,
    Rename,
    decode_value,
    encode_value,
    put,
    under,
)


def test_put_get_and_versions():
    kvs = Kvs()
    first = kvs.apply([put("a.b.c", {"x": [1, 2.5, None, True, "é"]}), put("a.raw", b"\xff\x00")])
    assert [(c.key, c.version) for c in first] == [("a.b.c", 1), ("a.raw", 1)]
    assert kvs.get("a.b.c") == {"x": [1, 2.5, None, True, "é"]} and kvs.get("a.raw") == b"\xff\x00"
    assert kvs.apply([put("a.raw", 1)])[0].value == 1
    assert (kvs.version, kvs.key_version("a.raw"), kvs.key_version("a.b.c"), kvs.key_version("no")) == (2, 2, 1, 0)


def test_what_is_put_is_a_copy():
    kvs, value = Kvs(), [1]
    kvs.apply([put("a", value)])
    value.append(2)
    assert kvs.get("a") == [1]


def test_listing():
    kvs = Kvs()
    assert kvs.ls() == [] and kvs.ls(recursive=True) == []
    kvs.apply([put(k, 0) for k in ("b", "a.y", "a.x.1", "a.x.2")])
    assert kvs.ls() == ["a.", "b"] and kvs.ls("a") == ["a.x.", "a.y"]
    assert kvs.ls("a", recursive=True) == ["a.x.1", "a.x.2", "a.y"] and kvs.ls("b") == ["b"]
    assert [c.key for c in kvs.items("a.x")] == ["a.x.1", "a.x.2"]
    with pytest.raises(NoKey, match=r"'a\.z'"):
        kvs.ls("a.z")
    kvs.apply([Delete("a", recursive=True)])
    assert kvs.ls() == ["b"] and not kvs.is_dir("a")


@pytest.mark.parametrize("key", ["", ".", "a.", ".a", "a..b", "a b", "a/b", "a\n", "a*", "x" * 256, "a." * 600 + "a",
                                 "job", "job.1.x", "a\x00"])
def test_bad_keys(key):
    with pytest.raises(BadKey):
        Kvs().apply([put(key, 1)])


def test_a_value_is_not_a_directory():
    kvs = Kvs()
    kvs.apply([put("a.b", 1)])
    for op in (put("a", 1), put("a.b.c", 1), put("a.b.c.d", 1), Delete("a")):
        with pytest.raises(KvsError):
            kvs.apply([op])
    with pytest.raises(NoKey, match="directory"):
        kvs.get("a")
    kvs.apply([Delete("a.b"), put("a", 1)])
    assert kvs.get("a") == 1 and kvs.version == 2


@pytest.mark.parametrize("value", [{1: 2}, {"a": {3}}, object(), 1 << 64, [1j], "\udc80"])
def test_values_that_are_no_json(value):
    with pytest.raises((TypeError, ValueError)):
        encode_value(value)


def test_values_that_contain_themselves():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="contains itself"):
        encode_value(loop)


def test_compare_and_swap():
    kvs = Kvs()
    kvs.apply([Check("lock", 0), put("lock", "me")])
    with pytest.raises(Conflict, match="version 1, not 0"):
        kvs.apply([put("other", 1), Check("lock", 0), put("lock", "you")])
    assert kvs.get("lock") == "me" and kvs.ls() == ["lock"] and kvs.version == 1
    kvs.apply([Check("lock", 1), put("lock", "you")])


def test_a_failed_transaction_leaves_no_trace():
    kvs = Kvs()
    kvs.apply([put("a.b", 1), put("c", 2)])
    before = kvs.items()
    with pytest.raises(NoKey):
        kvs.apply([Delete("a", True), put("a", 5), Rename("c", "d.e"), put("z.z", 1), Delete("nothing")])
    assert kvs.items() == before and kvs.ls() == ["a.", "c"] and kvs.changes_since(1) == []


def test_rename():
    kvs = Kvs()
    kvs.apply([put("a.b", 1), put("a.c.d", 2), put("z", 3)])
    changes = kvs.apply([Rename("a", "x.y")])
    assert [(c.key, c.deleted) for c in changes] == [
        ("a.b", True), ("x.y.b", False), ("a.c.d", True), ("x.y.c.d", False)]
    assert kvs.ls(recursive=True) == ["x.y.b", "x.y.c.d", "z"]
    for op in (Rename("x", "x.q"), Rename("z", "x"), Rename("z", "z"), Rename("no", "n"), Rename("x", "z.k")):
        with pytest.raises(KvsError):
            kvs.apply([op])


def test_the_memory_of_changes_is_bounded_in_bytes():
    kvs, value = Kvs(history_bytes=100_000), encode_value(bytes(10_000))
    for _ in range(50):
        kvs.apply([Put("k", value)])
    size = sum(len(change.key) + len(change.data) for change in kvs._ring)
    assert size == kvs._ring_bytes <= 100_000
    assert [change.version for change in kvs.changes_since(41)] == list(range(42, 51))
    assert kvs.changes_since(40) is None
    # all or nothing of a transaction
    kvs.apply([Put(f"a.{i}", value) for i in range(6)])
    kvs.apply([Put(f"b.{i}", value) for i in range(6)])
    assert kvs.changes_since(50) is None and [change.key[0] for change in kvs.changes_since(51)] == ["b"] * 6
    kvs.apply([Put(f"c.{i}", value) for i in range(20)])
    assert kvs.changes_since(52) is None and kvs.changes_since(53) == [] and kvs._ring_bytes == 0
    kvs.apply([Delete("k")])
    assert [change.deleted for change in kvs.changes_since(53)] == [True]


def test_changes_since_and_its_memory():
    kvs = Kvs(history=4)
    for i in range(6):
        kvs.apply([put(f"k.{i % 2}", i)])
    assert [c.value for c in kvs.changes_since(3)] == [3, 4, 5]
    assert [c.value for c in kvs.changes_since(2, "k.1")] == [3, 5]
    assert kvs.changes_since(1) is None and kvs.changes_since(6) == []
    kvs.apply([put(f"m.{i}", i) for i in range(5)])
    assert kvs.changes_since(6) is None and kvs.changes_since(7) == []


def test_put_and_delete_in_one_transaction_is_no_change():
    kvs = Kvs()
    assert kvs.apply([put("a", 1), Delete("a")]) == [] and kvs.version == 0


def test_load_goes_on_where_a_journal_ended():
    kvs = Kvs()
    kvs.load([("a.b", encode_value(1), 3), ("gone", None, 9)])
    assert kvs.get("a.b") == 1 and kvs.version == 9 and kvs.key_version("a.b") == 3
    assert kvs.changes_since(8) is None and kvs.changes_since(9) == []


def test_under():
    assert under("a.b", "a") and under("a", "a") and under("x", "") and not under("ab", "a")


keys = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(".".join)
ops = st.one_of(
    st.builds(put, keys, st.integers(0, 9)), st.builds(Delete, keys, st.booleans()), st.builds(Rename, keys, keys),
    st.builds(Check, keys, st.integers(0, 3)))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(ops, max_size=4), max_size=12))
def test_directories_versions_and_history_always_agree(txns):
    kvs, replica = Kvs(history=1000), {}
    for txn in txns:
        before, version = kvs.items(), kvs.version
        try:
            changes = kvs.apply(txn)
        except KvsError:
            assert kvs.items() == before and kvs.version == version
            continue
        for change in changes:
            if change.deleted:
                del replica[change.key]
            else:
                replica[change.key] = change.data
        assert kvs.changes_since(version) == changes
        assert {c.key: c.data for c in kvs.items()} == replica
        assert kvs.bytes == sum(KEY_BYTES + len(key) + len(data) for key, data in replica.items())
        found, stack = [], [""]
        while stack:
            for entry in kvs.ls(stack.pop()):
                (stack if entry.endswith(".") else found).append(entry.rstrip("."))
        assert sorted(found) == sorted(replica)
        for key in found:
            assert not any(under(other, key) for other in found if other != key)


@given(st.recursive(st.none() | st.booleans() | st.integers(-2**63, 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
                    lambda x: st.lists(x) | st.dictionaries(st.text(), x)) | st.binary())
def test_values_come_back_equal(value):
    assert decode_value(encode_value(value)) == value


def test_operations_travel():
    import msgspec

    txn = (put("a", 1), Delete("b", True), Rename("c", "d"), Check("e", 4))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(txn), type=tuple[Put | Delete | Rename | Check, ...]) == txn


def test_all_values_together_are_bounded():
    kvs = Kvs(limit=20_000)
    kvs.apply([put("a", bytes(9000)), put("b.c", bytes(8000))])
    with pytest.raises(Full, match="--kvs-limit"):
        kvs.apply([put("d", bytes(9000)), put("e", 1)])
    assert kvs.ls(recursive=True) == ["a", "b.c"] and kvs.version == 1
    kvs.apply([put("d", bytes(9000)), Delete("a")])
    assert kvs.ls(recursive=True) == ["b.c", "d"], "what is so at the end of a transaction counts"
    kvs.limit = 1000
    kvs.apply([put("d", b"shorter")])
    kvs.apply([Rename("d", "e")])
    kvs.apply([Delete("b", recursive=True)])
    with pytest.raises(Full):
        kvs.apply([put("e", bytes(2000))])
    kvs.apply([Delete("e")])
    assert kvs.bytes == 0
