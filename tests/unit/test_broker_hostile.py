"""What no well-meant client asks: numbers that are none, counts below zero, products that no integer holds."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpiflux.instance.broker import Broker, Session
from mpiflux.instance.broker_desk import Desk
from mpiflux.instance.broker_results import Results
from mpiflux.instance.master import Master
from mpiflux.model import messages as m
from mpiflux.model import requests as r
from mpiflux.model.jobspec import Request, Workflow
from mpiflux.model.params import (
    FloatColumn,
    LinspaceColumn,
    ListColumn,
    LogspaceColumn,
    ParamTable,
    RangeColumn,
)
from mpiflux.model.retry import Retry
from mpiflux.model.template import CompiledGroup
from mpiflux.store.jobtable import JobTable
from mpiflux.store.journal import Journal
from mpiflux.store.kvs import Kvs


class Observer:
    def note(self, text: str) -> None:
        return

    def progress(self, view: object) -> None:
        return


class Whole:
    """The desk of a master that has no tree below it, and clients."""

    def __init__(self, run_dir: Path) -> None:
        self.journal, self.table, submitted = Journal(run_dir, durable=False), JobTable(), []
        self.notes: list[str] = []
        self.master = Master(Workflow(name="w"), self.journal, self.table, Observer(), cores=4, ranks=1,
                             clock=lambda: 1.0, t_submit=submitted)
        self.desk = Desk(self.master, Results(self.table, self.journal, ["n"], submitted, str(run_dir)), Kvs(),
                         instance="i", run_dir=str(run_dir), cores=4, gpus=0, misfit=lambda group: "",
                         node_of=lambda endpoint: "n", note=self.notes.append)
        self._client = self._number = 0

    def hello(self) -> int:
        self.notes.clear()
        self.desk._gate(Session(7, 0), 0, r.Gate(True, True))
        self._client += 1
        self.raw(self._client, r.encode(r.Hello(r.VERSION)))
        return self._client

    def raw(self, client: int, frame: bytes) -> list[r.ToClient]:
        self.desk.handle(7, m.ClientRequest(client, (frame,)), 0.0)
        self.desk.work(0.0)
        return [r.decode_answer(frame) for _, message in self.desk.collect() if isinstance(message, m.ClientReply)
                and client in message.clients for frame in message.frames]

    def ask(self, client: int, op: r.Op) -> Any:
        self._number += 1
        said = self.raw(client, r.encode(r.Call(self._number, op)))
        return next((one for one in said if getattr(one, "number", 0) == self._number), None)

    def gone(self, client: int) -> None:
        self.desk.handle(7, m.ClientGone(client), 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    made = Whole(tmp_path_factory.mktemp("run") / "r")
    yield made
    made.desk.close()
    made.journal.close()


HUGE = (1 << 63) - 1
_numbers = st.sampled_from([-HUGE - 1, -(1 << 40), -2, -1, 0, 1, 2, 3, 17, 1 << 31, 10 ** 9, HUGE, 2 * HUGE + 1])
_floats = st.sampled_from([float("nan"), float("inf"), float("-inf"), -1.0, 0.0, 1.0, 1e308, 1e-300, 400.0])
_texts = st.sampled_from(["", "a", "a.b", "**", "*.**", "#0", "#²", "#" + "9" * 30, "job.1.stdout", "job.1.guest.a",
                          "x\0", "{i}", "{job.id}", "true", "ok", "product", "zip", "t"])


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type, odd ones rather than usual ones."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is int:
        return _numbers
    if kind is float:
        return _floats
    if kind is str:
        return _texts
    if kind is bool:
        return st.booleans()
    if kind is bytes:
        return st.sampled_from([b"", b"\xc0", b"\x90", bytes(8), bytes(7), b"\x91" * 3000])
    if kind is type(None):
        return st.none()
    if origin in (Union, types.UnionType):
        return st.one_of([values(one) for one in args])
    if origin is tuple:
        if args[-1] is Ellipsis:
            return st.lists(values(args[0]), max_size=4).map(tuple)
        return st.tuples(*map(values, args))
    if origin is dict:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=2)
    assert issubclass(kind, msgspec.Struct), kind
    hints = get_type_hints(kind)
    return st.builds(kind, **{name: values(hints[name]) | st.just(_default(kind, name)) if _default(kind, name) is not
                              msgspec.NODEFAULT else values(hints[name]) for name in kind.__struct_fields__})


def _default(kind: Any, name: str) -> Any:
    [field] = [field for field in msgspec.structs.fields(kind) if field.name == name]
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def group(**fields: Any) -> r.Submit:
    return r.Submit((r.NewGroup(**{"command": ("true",), **fields}),))


_asked = [values(op) for op in get_args(r.Op)]
_hints = get_type_hints(r.NewGroup)
_groups = [values(_hints[name]).map(lambda value, name=name: group(**{name: value})) for name in _hints]


@given(st.lists(st.one_of([*_asked, *_groups, *[_groups[list(_hints).index("params")]] * 8]), min_size=1, max_size=4))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture,
                                                                   HealthCheck.too_slow])
def test_whatever_is_asked_is_answered_and_others_go_on(whole: Whole, asked: list[r.Op]) -> None:
    other, client = whole.hello(), whole.hello()
    before = len(whole.table)
    for op in asked:
        whole.ask(client, op)
    assert isinstance(whole.ask(other, r.Ls()), r.Reply)
    assert not whole.notes, "no check let it through"
    for group in whole.table.groups:
        if group.first_id > before:
            compiled = CompiledGroup(group, "/")
            for index in {0, group.count - 1}:
                compiled.argv(index, 1)
    whole.gone(client)
    whole.gone(other)


def table(*columns: Any, sampling: str = "product") -> ParamTable:
    return ParamTable(tuple("ijklm"[:len(columns)]), columns, sampling)


@pytest.mark.parametrize("fields", [
    {"params": table(*[RangeColumn(0, 1, 10 ** 9)] * 3)},
    {"params": table(RangeColumn(0, 1, -1))},
    {"params": table(RangeColumn(0, 1, -2), RangeColumn(0, 1, -2))},
    {"params": table(RangeColumn(0, 1, HUGE), sampling="zip")},
    {"params": table(RangeColumn(0, 1, 2 * HUGE))},
    {"params": table(RangeColumn(HUGE, HUGE, 100))},
    {"params": table(LinspaceColumn(0.0, float("nan"), 3))},
    {"params": table(LogspaceColumn(0.0, 400.0, 3))},
    {"params": table(FloatColumn(bytes(9)))},
    {"params": table(ListColumn(("a\0b",)))},
    {"params": table(RangeColumn(0, 1, 2), RangeColumn(0, 1, 3), sampling="zip")},
    {"time_limit": float("nan")}, {"time_limit": float("inf")}, {"time_limit": -1.0},
    {"begin_time": float("nan")}, {"retries": -1}, {"retries": 1 << 40}, {"urgency": -1},
    {"retry": Retry(backoff=float("inf"))}, {"retry": Retry(factor=float("nan"))}, {"retry": Retry(max=float("nan"))},
    {"resources": Request(tasks=-1)}, {"resources": Request(cores=0)}, {"resources": Request(gpus=-1)},
    {"resources": Request(nodes=-5)}, {"resources": Request(memory=-1)}, {"resources": Request(layout="x")},
    {"resources": Request(per_node=True)}, {"resources": Request(consumables={"a": -1})},
    {"mpi": "x"}, {"env": {"A=B": "c"}}, {"env": {"": "c"}}, {"name": "x" * 5000}, {"name": "a\0"},
    {"command": (), "script": "echo \0"}, {"command": ("{nothing}",)}, {"after": (r.After(group="#²³"),)},
], ids=lambda fields: next(iter(fields)))
def test_a_group_that_cannot_be_is_refused_and_nothing_is_changed(whole: Whole, fields: dict[str, Any]) -> None:
    client, before = whole.hello(), len(whole.table.groups)
    answer = whole.ask(client, r.Submit((*group().groups, *group(**fields).groups)))
    assert isinstance(answer, r.Error) and answer.kind in ("value", "job"), answer
    assert "log of the run" not in answer.text and not whole.notes
    assert len(whole.table.groups) == len(whole.master.groups) == before
    assert isinstance(whole.ask(client, group()), r.Reply)


def test_a_call_number_in_use_ends_its_client_alone(whole: Whole) -> None:
    client, other = whole.hello(), whole.hello()
    frame = r.encode(r.Call(5, r.Get("never", wait=True)))
    assert whole.raw(client, frame) == []
    assert isinstance(whole.raw(client, frame)[-1], r.Goodbye)
    assert isinstance(whole.ask(other, r.Ls()), r.Reply)


def test_who_follows_a_name_hears_of_jobs_that_come_later(whole: Whole) -> None:
    client, other = whole.hello(), whole.hello()
    heard: list[tuple[int, str]] = []

    def hear(frame: bytes) -> None:
        whole.desk.handle(7, m.ClientRequest(other, (frame,)), 0.0)
        whole.desk.work(0.0)
        for _, message in whole.desk.collect():
            if isinstance(message, m.ClientReply) and client in message.clients:
                for one in map(r.decode_answer, message.frames):
                    heard.extend((item[1], item[2]) for item in getattr(one, "items", ()))

    whole.ask(other, group(name="followed"))
    for names in ((), ("submit",)):
        whole.ask(client, r.Events(1, r.Select(name="followed"), names, -1))
        first = len(whole.table) + 1
        for count in (2, 1, 100):
            hear(r.encode(r.Call(0, group(name="followed", params=table(RangeColumn(0, 1, count))))))
            hear(r.encode(r.Call(0, group(name="another"))))
        assert [job for job, name in heard if name == "submit"] == [
            first, first + 1, first + 3, *range(first + 5, first + 105)]
        heard.clear()
        whole.ask(client, r.Unsubscribe(1))
    finite = whole.ask(client, r.Events(2, r.Select(name="followed"), (), -1, True))
    assert isinstance(finite, r.Reply)
    hear(r.encode(r.Call(0, group(name="followed"))))
    assert not heard, "these are the jobs that there were when it began"
    whole.gone(client)


def test_jobs_submitted_one_by_one_share_what_they_have_in_common(whole: Whole) -> None:
    client = whole.hello()
    for word in ("a", "b"):
        whole.ask(client, group(command=("true", word), cwd="/some/where", name="one-by-one",
                                resources=Request(cores=2, consumables={"x": 1}), retry=Retry(backoff=1.0)))
    first, second = whole.table.groups[-2:]
    assert (first.command, second.command) == (("true", "a"), ("true", "b"))
    for name in ("request", "retry", "params", "env", "cwd", "name"):
        assert getattr(first, name) is getattr(second, name), name
    whole.gone(client)


class _Careless:
    """A part with mistakes."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def handlers(self) -> Any:
        return {r.Ls: self._ls, r.Watch: self._watch, r.Status: lambda session, number, op: {"nodes": 4}}

    def _ls(self, session: Session, number: int, op: r.Ls) -> Any:
        session.wait(number, lambda: self.forgotten.append("call"))
        return 1 // 0

    def _watch(self, session: Session, number: int, op: r.Watch) -> Any:
        session.subscribe(op.sub, lambda: self.forgotten.append("sub"))
        raise KeyError(op.key)

    def turn(self, now: float) -> None:
        raise ValueError("a turn")


def test_a_mistake_of_ours_is_an_error_for_one_client_and_noted_once() -> None:
    part, notes = _Careless(), []
    broker = Broker([part], instance="i", run_dir="/r", note=notes.append)

    def say(client: int, frame: bytes) -> list[Any]:
        broker.handle(7, m.ClientRequest(client, (frame,)), 0.0)
        return [r.decode_answer(frame) for _, message in broker.collect() if isinstance(message, m.ClientReply)
                for frame in message.frames]

    for client in (1, 2):
        say(client, r.encode(r.Hello(r.VERSION)))
    for number in (1, 2):
        [error] = say(1, r.encode(r.Call(number, r.Ls())))
        assert (error.number, error.kind) == (number, "request") and "Ls" in error.text
        broker.turn(0.0)
    assert say(1, r.encode(r.Call(3, r.Watch(9, "a"))))[0].number == 3
    assert part.forgotten == ["call", "call", "sub"], "nothing of them is left behind"
    assert say(2, r.encode(r.Call(4, r.Status())))[0].value == {"nodes": 4}
    assert [note.splitlines()[-1] for note in notes] == [
        "ZeroDivisionError: integer division or modulo by zero", "ValueError: a turn", "KeyError: 'a'"]
    assert all("Traceback" in note for note in notes)
