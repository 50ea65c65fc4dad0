"""The broker as a state machine: frames in, frames out, no rank and no socket."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiflux.instance.broker import KEPT, Broker
from mpiflux.instance.broker_kvs import Keys
from mpiflux.instance.broker_messages import GRACE, ITEM_BYTES, QUEUE_BYTES, Messages
from mpiflux.model import messages as m
from mpiflux.model import requests as r
from mpiflux.store import kvs as store


class Desk:
    """A broker of keys and messages, and its clients."""

    def __init__(self) -> None:
        self.kept: list[store.Change] = []
        keys = Keys(store.Kvs(), self.kept.extend, lambda *_: None, lambda *_: None, lambda *_: None, int)
        self.held: set[object] = set()
        self.broker = Broker([keys, Messages()], instance="i", run_dir="/r",
                             hold=lambda s, keep: self.held.add(s) if keep else self.held.discard(s))
        self.heard: dict[int, list[Any]] = {}
        self.closed: set[int] = set()
        self._number = 0
        self.taken: dict[int, int] = {}
        """Bytes of requests that were acknowledged."""
        self.asked_to_tell: set[int] = set()

    def hello(self, client: int, **options: Any) -> None:
        self.raw(client, r.encode(r.Hello(r.VERSION, **options)))
        assert isinstance(self.take(client)[0], r.Welcome)

    def raw(self, client: int, *frames: bytes) -> None:
        self.broker.handle(7, m.ClientRequest(client, frames), 0.0)
        self.deliver()

    def deliver(self) -> None:
        for endpoint, message in self.broker.collect():
            assert endpoint == 7
            if isinstance(message, m.ClientTaken):
                self.taken[message.client] = self.taken.get(message.client, 0) + message.size
                continue
            assert isinstance(message, m.ClientReply)
            if message.tell:
                self.asked_to_tell.update(message.clients)
            for client in message.clients:
                self.heard.setdefault(client, []).extend(map(r.decode_answer, message.frames))
                if message.close:
                    self.closed.add(client)

    def take(self, client: int) -> list[Any]:
        return self.heard.pop(client, [])

    def call(self, client: int, op: r.Op) -> int:
        self._number += 1
        self.raw(client, r.encode(r.Call(self._number, op)))
        return self._number

    def ask(self, client: int, op: r.Op) -> Any:
        number = self.call(client, op)
        [answer] = [one for one in self.take(client) if getattr(one, "number", 0) == number]
        return answer.value if isinstance(answer, r.Reply) else answer.kind

    def gone(self, client: int) -> None:
        self.broker.handle(7, m.ClientGone(client), 0.0)
        self.deliver()


@pytest.fixture
def desk() -> Desk:
    made = Desk()
    for client in (1, 2, 3):
        made.hello(client)
    return made


def ops(*given: store.Op) -> bytes:
    import msgspec

    return msgspec.msgpack.encode(given)


def put(key: str, value: object) -> r.Txn:
    return r.Txn(ops(store.put(key, value)))


def test_every_request_has_one_who_answers_it() -> None:
    from mpiflux.instance.broker_desk import Desk as Whole
    from mpiflux.instance.broker_events import Streams
    from mpiflux.instance.broker_explain import Explaining
    from mpiflux.instance.broker_jobs import Jobs
    from mpiflux.instance.broker_running import Running
    from mpiflux.instance.broker_stdin import Stdins
    from mpiflux.instance.broker_ties import Ties

    handled = {r.Unsubscribe, r.Forget, r.Leave, *Messages().handlers()}
    for part in (Keys, Jobs, Ties, Running, Stdins, Streams, Explaining, Whole):
        handled |= set(part.handlers(part.__new__(part)))
    assert handled == set(get_args(r.Op))


def test_who_asks_for_more_than_it_reads_waits(desk: Desk) -> None:
    desk.ask(1, put("big", bytes(6 << 20)))
    desk.taken.clear()
    asked = [r.encode(r.Call(100 + n, r.Get("big"))) for n in range(10)]
    desk.raw(1, *asked)
    told = len(desk.take(1))
    assert told == 3, "three of them are more than what may wait"
    assert desk.ask(2, r.Get("big"))[1] == 1, "nobody else waits"
    desk.raw(1, r.encode(r.Call(200, r.Ls())))
    assert desk.take(1) == []
    while desk.asked_to_tell:
        assert desk.asked_to_tell == {1}
        desk.asked_to_tell.clear()
        desk.broker.handle(7, m.ClientReady(1), 0.0)
        desk.deliver()
        heard = desk.take(1)
        assert 0 < len(heard) <= 3
        assert [one.number for one in heard] == [*range(100, 110), 200][told:told + len(heard)], "in order"
        told += len(heard)
    assert told == 11


def test_requests_are_acknowledged_once_they_are_dealt_with(desk: Desk) -> None:
    frames = [r.encode(r.Call(0, put("k", bytes(1000)))) for _ in range(1000)]
    for frame in frames:
        desk.raw(1, frame)
    size = sum(map(len, frames))
    assert size - (64 << 10) < desk.taken[1] <= size + 100


def test_a_request_that_nobody_answers_is_an_error(desk: Desk) -> None:
    assert desk.ask(1, r.Status()) == "request"
    assert desk.ask(1, r.Ls()) == ["job."]


def test_a_watcher_sees_every_change_once_and_in_order(desk: Desk) -> None:
    desk.ask(1, put("a.x", 1))
    desk.call(2, r.Watch(5, "a"))
    desk.call(3, r.Watch(6, "", 0))
    for n in range(3):
        desk.ask(1, r.Txn(ops(store.put("a.x", n), store.put("a.y", n), store.put("ab", n))))
    desk.ask(1, r.Txn(ops(store.Delete("a", True))))
    seen = [item for one in desk.take(2) if isinstance(one, r.Items) for item in one.items]
    assert [(key, version) for key, _, version in seen] == [
        ("a.x", 1), ("a.x", 2), ("a.y", 2), ("a.x", 3), ("a.y", 3), ("a.x", 4), ("a.y", 4), ("a.x", 5), ("a.y", 5)]
    assert [data is None for _, data, _ in seen] == [False] * 7 + [True] * 2
    everything = [item for one in desk.take(3) if isinstance(one, r.Items) for item in one.items]
    assert len(everything) == 1 + 9 + 2
    assert [item[2] for item in everything] == sorted(item[2] for item in everything)
    desk.call(3, r.Unsubscribe(6))
    desk.ask(1, put("z", 1))
    assert not [one for one in desk.take(3) if isinstance(one, r.Items)]


def test_a_watch_from_too_long_ago_is_refused(desk: Desk) -> None:
    for n in range(20):
        desk.ask(1, r.Txn(ops(*(store.put(f"k{i}", n) for i in range(1000)))))
    assert desk.ask(2, r.Watch(1, "", 3)) == "history"


def test_a_fence_opens_for_all_at_once(desk: Desk) -> None:
    first = desk.call(1, r.Fence("f", 3, ops(store.put("a", 1))))
    second = desk.call(2, r.Fence("f", 3, ops(store.put("b", 2))))
    assert desk.take(1) == desk.take(2) == [] and not desk.kept
    assert desk.ask(3, r.Fence("f", 2)) == "value"
    assert desk.ask(3, r.Fence("f", 3)) == 1
    assert [one.number for one in (*desk.take(1), *desk.take(2))] == [first, second]
    assert {change.version for change in desk.kept} == {1}
    # a new one of the same name; and who dies is not counted
    desk.call(1, r.Fence("f", 2))
    desk.gone(1)
    desk.call(2, r.Fence("f", 2))
    assert desk.take(2) == []


def test_calls_go_to_the_least_busy_server_and_fail_when_it_dies(desk: Desk) -> None:
    desk.hello(4)
    assert desk.ask(1, r.Ask("s", b"x")) == "service"
    desk.ask(2, r.Serve(1, "s"))
    desk.ask(3, r.Serve(1, "s"))
    numbers = [desk.call(1, r.Ask("s", bytes([n]))) for n in range(4)]
    work = {server: [item for one in desk.take(server) for item in one.items] for server in (2, 3)}
    assert sorted(len(items) for items in work.values()) == [2, 2]
    call, data = work[2][0]
    desk.call(4, r.Answer(call, b"not his to answer"))
    assert desk.take(1) == []
    desk.call(2, r.Answer(call, b"!" + data))
    assert [(one.number, one.value) for one in desk.take(1)] == [(numbers[data[0]], b"!" + data)]
    desk.gone(2)
    assert [one.kind for one in desk.take(1)] == ["lost"]
    desk.gone(3)
    assert [one.kind for one in desk.take(1)] == ["lost", "lost"]
    assert desk.ask(1, r.Ask("s", b"x")) == "service"


def test_who_dies_gives_back_what_it_took(desk: Desk) -> None:
    desk.ask(1, r.Push("q", (b"a", b"b"), 0.0))
    desk.ask(1, r.Push("q", (b"c",), 1.0))
    assert desk.ask(2, r.Pull("q", ack=False))[1] == b"c"
    item, data, died = desk.ask(2, r.Pull("q", ack=False))
    assert (data, died) == (b"a", 0)
    waiting = [desk.call(3, r.Pull("q")) for _ in range(2)]
    assert [one.value[1] for one in desk.take(3)] == [b"b"]
    assert desk.ask(3, r.Done(item)) == "value"
    assert desk.ask(2, r.Done(item)) is None
    desk.gone(2)
    assert [(one.number, *one.value[1:]) for one in desk.take(3)] == [(waiting[1], b"c", 1)]
    assert desk.ask(1, r.QueueInfo()) == {}


def test_a_queue_goes_some_time_after_its_owner(desk: Desk) -> None:
    [queues] = [part._queues for part in desk.broker.parts if isinstance(part, Messages)]
    desk.ask(1, r.Own(1, "mine"))
    desk.ask(1, r.Push("mine", (b"a", bytes(1 << 20), b"c")))
    desk.ask(1, r.Push("free", (b"x",)))
    item = desk.ask(2, r.Pull("mine", ack=False))[0]
    desk.gone(1)
    desk.broker.turn(100.0)
    desk.broker.turn(101.0)
    desk.hello(4)
    desk.ask(4, r.Own(1, "mine"))
    desk.broker.turn(500.0)
    assert desk.ask(2, r.QueueInfo())["mine"] == [2, 1, 0], "who comes back finds all of it"
    desk.gone(4)
    desk.broker.turn(1000.0)
    assert desk.ask(2, r.QueueInfo())["mine"] == [2, 1, 0]
    desk.broker.turn(1000.0 + GRACE)
    assert desk.ask(2, r.QueueInfo()) == {"free": [1, 0, 0]}
    desk.ask(2, r.Done(item, back=True))
    desk.ask(2, r.Pull("free"))
    assert desk.ask(2, r.QueueInfo()) == {} and queues._bytes == 0
    # its consumers wait no longer, and another may have the name
    desk.hello(5)
    desk.ask(5, r.Own(1, "mine"))
    waiting = desk.call(2, r.Pull("mine"))
    desk.gone(5)
    desk.broker.turn(2000.0)
    desk.broker.turn(3000.0)
    desk.deliver()
    assert [(one.number, one.kind) for one in desk.take(2)] == [(waiting, "lost")]
    desk.ask(3, r.Push("mine", (b"n",)))
    assert desk.ask(2, r.Pull("mine"))[1] == b"n"


def test_an_emptied_queue_is_forgotten(desk: Desk) -> None:
    assert desk.ask(1, r.Pull("a", wait=False)) == "empty"
    number = desk.call(1, r.Pull("b"))
    assert desk.ask(2, r.QueueInfo()) == {"b": [0, 0, 1]}
    desk.raw(1, r.encode(r.Call(0, r.Forget(number))))
    desk.ask(1, r.Push("c", ()))
    desk.ask(1, r.Push("d", (b"x",)))
    item = desk.ask(2, r.Pull("d", ack=False))[0]
    assert desk.ask(2, r.QueueInfo()) == {"d": [0, 1, 0]}
    desk.ask(2, r.Done(item))
    assert desk.ask(2, r.QueueInfo()) == {}


def test_items_without_data_are_counted_too(desk: Desk) -> None:
    [queues] = [part._queues for part in desk.broker.parts if isinstance(part, Messages)]
    queues._bytes = QUEUE_BYTES - 100 * ITEM_BYTES
    assert desk.ask(1, r.Push("q", (b"",) * 100)) == 100
    assert desk.ask(1, r.Push("q", (b"",))) == "value"


def test_a_pull_that_is_forgotten_is_answered_by_an_error_or_was_answered(desk: Desk) -> None:
    number = desk.call(1, r.Pull("q", ack=False))
    desk.raw(1, r.encode(r.Call(0, r.Forget(number))))
    assert [(one.number, one.kind) for one in desk.take(1)] == [(number, "request")]
    desk.ask(2, r.Push("q", (b"a", b"b")))
    item, data, _ = desk.ask(1, r.Pull("q", ack=False))
    desk.raw(1, r.encode(r.Call(0, r.Forget(number))))
    assert desk.take(1) == [] and data == b"a"
    desk.raw(1, r.encode(r.Call(0, r.Done(item, back=True))))
    assert desk.ask(2, r.Pull("q"))[1:] == [b"a", 0], "in its place, and nobody has died of it"


@given(st.lists(st.tuples(st.sampled_from(["push", "pull", "take", "done", "back", "die"]), st.integers(0, 2)),
                max_size=40))
@settings(max_examples=200, deadline=None)
def test_no_item_is_lost_and_none_is_had_twice(steps: list[tuple[str, int]]) -> None:
    desk = Desk()
    alive = {}
    born = 0
    pushed: list[bytes] = []
    had: list[bytes] = []
    taken: dict[int, dict[int, bytes]] = {}

    def hear() -> None:
        for client in list(taken):
            for one in desk.take(client):
                if isinstance(one, r.Reply) and isinstance(one.value, list):
                    item, data, _ = one.value
                    if one.number in keeps:
                        taken[client][item] = data
                    else:
                        had.append(data)

    keeps: set[int] = set()
    for step, who in steps:
        if who not in alive:
            born += 1
            alive[who] = born
            taken[born] = {}
            desk.hello(born)
        client = alive[who]
        if step == "push":
            pushed.append(b"%d" % len(pushed))
            desk.call(client, r.Push("q", (pushed[-1],)))
        elif step in ("pull", "take"):
            keeps.add(desk._number + 1) if step == "take" else None
            desk.call(client, r.Pull("q", ack=step == "pull"))
        elif step == "die":
            desk.gone(client)
            del alive[who], taken[client]
        elif taken[client]:
            item, data = taken[client].popitem()
            if step == "done":
                had.append(data)
            desk.call(client, r.Done(item, back=step == "back"))
        hear()
    desk.hello(1000)
    for who in list(alive):
        desk.gone(alive[who])
        hear()
    rest = []
    while isinstance(found := desk.ask(1000, r.Pull("q", wait=False)), list):
        rest.append(found[1])
    assert sorted(had + rest) == sorted(pushed)


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5),
       st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=5))
def test_patterns_match_as_they_say(topic: list[str], pattern: list[str]) -> None:
    def matches(t: list[str], p: list[str]) -> bool:
        if not p:
            return not t
        if p[0] == "**":
            return any(matches(t[i:], p[1:]) for i in range(len(t) + 1))
        return bool(t) and p[0] in ("*", t[0]) and matches(t[1:], p[1:])

    desk = Desk()
    desk.hello(1)
    desk.ask(1, r.Subscribe(1, ".".join(pattern)))
    assert desk.ask(1, r.Publish(".".join(topic), b"")) == matches(topic, pattern)
    desk.call(1, r.Unsubscribe(1))
    assert desk.ask(1, r.Publish(".".join(topic), b"")) == 0


def test_no_pattern_makes_a_publish_long(desk: Desk) -> None:
    looked = 0

    class Counted(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            nonlocal looked
            looked += 1
            return super().get(key, default)

    assert desk.ask(1, r.Publish(".".join("a" * 511), b"")) == "value"
    assert desk.ask(1, r.Subscribe(1, ".".join(["a"] * 33))) == "value"
    desk.ask(1, r.Subscribe(1, ".".join(["**"] * 32)))
    desk.ask(1, r.Subscribe(2, ".".join(["**", "*"] * 16)))
    desk.ask(1, r.Subscribe(3, ".".join(["**", "a"] * 16)))
    [topics] = [part._topics for part in desk.broker.parts if isinstance(part, Messages)]
    nodes, n = [topics._root], 0
    while nodes:
        node = nodes.pop()
        nodes += node.below.values()
        node.below = Counted(node.below)
        n += 1
    assert desk.ask(2, r.Publish(".".join("a" * 32), b"")) == 3
    assert desk.ask(2, r.Publish(".".join("a" * 15), b"")) == 1
    assert looked <= 2 * n * (32 + 15)
    for sub in (1, 2, 3):
        desk.call(1, r.Unsubscribe(sub))
    assert not topics._root.below


def test_who_keeps_the_instance_open_does_so_until_it_leaves() -> None:
    desk = Desk()
    desk.hello(1, keep=True)
    desk.hello(2)
    assert len(desk.held) == 1
    desk.ask(1, r.Push("q", (b"x",)))
    desk.ask(1, r.Pull("q", ack=False))
    desk.raw(1, r.encode(r.Call(0, r.Leave())), r.encode(r.Call(7, r.Ls())))
    assert not desk.held and desk.take(1) == []
    assert desk.ask(2, r.Pull("q", wait=False))[1] == b"x", "what it had goes back at once"
    desk.gone(1)


def test_who_loses_its_connection_keeps_the_instance_for_some_seconds() -> None:
    desk = Desk()
    desk.hello(1, keep=True, pid=10)
    desk.gone(1)
    desk.broker.turn(100.0)
    desk.broker.turn(99.0 + KEPT)
    assert len(desk.held) == 1
    desk.hello(2, keep=True, pid=10)
    assert len(desk.held) == 1, "it has come back, and holds for itself"
    desk.raw(2, r.encode(r.Call(0, r.Leave())))
    desk.gone(2)
    assert not desk.held
    desk.hello(3, keep=True, pid=11)
    desk.gone(3)
    desk.broker.turn(200.0)
    desk.broker.turn(200.0 + KEPT)
    assert not desk.held, "it does not come back"
    desk.hello(4, keep=True, pid=12)
    desk.raw(4, b"no request")
    assert 4 in desk.closed and not desk.held, "who is shown out does not either"


def test_the_same_for_many_is_one_message(desk: Desk) -> None:
    for client in (1, 2, 3):
        desk.ask(client, r.Subscribe(9, "t"))
    desk.broker.handle(7, m.ClientRequest(1, (r.encode(r.Call(0, r.Publish("t", b"x"))),)), 0.0)
    [(_, message)] = desk.broker.collect()
    assert sorted(message.clients) == [1, 2, 3]


@given(st.one_of(st.binary(max_size=200),
                 st.builds(lambda data, at, byte: data[:at % len(data)] + bytes([byte]) + data[at % len(data) + 1:],
                           st.sampled_from([r.encode(r.Call(1, op)) for op in (
                               r.Get("a"), put("a.b", [1]), r.Watch(1, "a"), r.Publish("t", b"x"), r.Fence("f", 2))]),
                           st.integers(0, 1000), st.integers(0, 255))))
@settings(max_examples=500, deadline=None)
def test_no_frame_raises(frame: bytes) -> None:
    desk = Desk()
    desk.hello(1)
    desk.hello(2)
    desk.raw(2, frame)
    assert desk.ask(1, r.Ls()) is not None
    if 2 in desk.closed:
        assert isinstance(desk.take(2)[-1], r.Goodbye)
