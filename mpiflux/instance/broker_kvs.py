"""Keys: transactions, watches, waiting for a key, fences. The values go to the journal as they are set. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from mpiflux.instance.broker import LATER, Handler, RequestError, Session
from mpiflux.model import requests as r
from mpiflux.store import kvs as store
from mpiflux.store.kvs import Change, Kvs, KvsError
from mpiflux.store.kvsview import split_guest

_KINDS = ((store.NoKey, "key"), (store.Conflict, "conflict"))
_PAGE = 1 << 20
"""Bytes of values in one frame of a watch."""
_ops = msgspec.msgpack.Decoder(store.Txn)
JOB = "job"


class _Fence:
    def __init__(self, n: int) -> None:
        self.n = n
        self.here: dict[tuple[Session, int], store.Txn] = {}


class Keys:
    """Implements :class:`mpiflux.instance.broker.DeskPart`.

    ``keep`` gets what has changed, to write it down; ``job_key`` answers keys below ``job``, which are put together
    from what is known of the jobs: (session, call number, key) to the value. ``job_id`` finds the job of a reference.
    """

    def __init__(self, kvs: Kvs, keep: Callable[[Iterable[Change]], None],
                 job_key: Callable[[Session, int, str], Any], job_ls: Callable[[Session, int, r.Ls], Any],
                 job_watch: Callable[[Session, int, r.Watch], Any], job_id: Callable[[str], int]) -> None:
        self.kvs = kvs
        self._keep, self._job_key, self._job_ls, self._job_watch = keep, job_key, job_ls, job_watch
        self._job_id = job_id
        self._watchers: dict[str, dict[tuple[Session, int], None]] = {}
        self._waiters: dict[str, dict[tuple[Session, int], None]] = {}
        self._fences: dict[str, _Fence] = {}

    def handlers(self) -> Mapping[type, Handler]:
        return {r.Get: self._get, r.Ls: self._ls, r.Txn: self._txn, r.Watch: self._watch, r.Fence: self._fence}

    def turn(self, now: float) -> None:
        return

    # -- reading ---------------------------------------------------------------------------------------------------

    def _stored(self, key: str) -> str:
        """A key as it is stored: those in a job's namespace are under the job's number. Raises RequestError."""
        try:
            found = split_guest(key)
        except KvsError as error:
            raise _wrong(error) from None
        return key if found is None else f"{JOB}.{self._job_id(found[0])}.{found[1]}"

    def _get(self, session: Session, number: int, op: r.Get) -> Any:
        key = self._stored(op.key)
        if key.partition(".")[0] == JOB and split_guest(key) is None:
            return self._job_key(session, number, key)
        try:
            return [self.kvs.get_data(key), self.kvs.key_version(key)]
        except store.NoKey as error:
            if not op.wait:
                raise RequestError("key", str(error)) from None
        except KvsError as error:
            raise _wrong(error) from None
        place = (session, number)

        def forget() -> None:
            waiting.pop(place, None)
            if not waiting:
                self._waiters.pop(key, None)

        answer = session.wait(number, forget)
        waiting = self._waiters.setdefault(key, {})
        waiting[place] = None
        return answer

    def _ls(self, session: Session, number: int, op: r.Ls) -> Any:
        prefix = self._stored(op.prefix)
        if prefix.partition(".")[0] == JOB and split_guest(prefix) is None:
            return self._job_ls(session, number, op)
        try:
            found = self.kvs.ls(prefix, recursive=op.recursive)
        except KvsError as error:
            raise _wrong(error) from None
        return found if prefix or op.recursive or f"{JOB}." in found else [*found, f"{JOB}."]

    # -- writing ---------------------------------------------------------------------------------------------------

    def _txn(self, session: Session, number: int, op: r.Txn) -> int:
        self._apply(self._decode(op.ops))
        return self.kvs.version

    def _decode(self, ops: bytes) -> store.Txn:
        txn = _decode(ops)
        if any(op.key.startswith(f"{JOB}.") or (isinstance(op, store.Rename) and op.to.startswith(f"{JOB}."))
               for op in txn):
            return tuple(store.Rename(self._stored(op.key), self._stored(op.to)) if isinstance(op, store.Rename) else
                         msgspec.structs.replace(op, key=self._stored(op.key)) for op in txn)
        return txn

    def _apply(self, txn: store.Txn) -> None:
        try:
            changes = self.kvs.apply(txn)
        except KvsError as error:
            raise _wrong(error) from None
        if changes:
            self._keep(changes)
            self._tell(changes)

    def _tell(self, changes: list[Change]) -> None:
        if self._waiters:
            for change in changes:
                if change.data is not None:
                    for session, number in list(self._waiters.pop(change.key, ())):
                        session.reply(number, [change.data, change.version])
        if not self._watchers:
            return
        told: dict[tuple[Session, int], list[Change]] = {}
        for change in changes:
            for prefix in _prefixes(change.key):
                for place in self._watchers.get(prefix, ()):
                    told.setdefault(place, []).append(change)
        for (session, sub), theirs in told.items():
            _send(session, sub, theirs)

    # -- watching --------------------------------------------------------------------------------------------------

    def _watch(self, session: Session, number: int, op: r.Watch) -> Any:
        key = self._stored(op.key)
        try:
            if key:
                store.check_key(key)
        except KvsError as error:
            raise _wrong(error) from None
        if key.partition(".")[0] == JOB and split_guest(key) is None:
            return self._job_watch(session, number, op)
        missed = self.kvs.items(key) if op.since < 0 else self.kvs.changes_since(op.since, key)
        if missed is None:
            raise RequestError("history", f"changes after version {op.since} are not all remembered; watch from now "
                                          "on, which begins with the values as they are")
        place = (session, op.sub)
        watching = self._watchers.setdefault(key, {})

        def end() -> None:
            watching.pop(place, None)
            if not watching:
                self._watchers.pop(key, None)

        session.subscribe(op.sub, end)
        watching[place] = None
        session.reply(number, self.kvs.version)
        _send(session, op.sub, missed)
        session.say(r.Items(op.sub, [], self.kvs.version))
        return LATER

    # -- meeting ---------------------------------------------------------------------------------------------------

    def _fence(self, session: Session, number: int, op: r.Fence) -> Any:
        txn = self._decode(op.ops) if op.ops else ()
        if op.n < 1:
            raise RequestError("value", f"fence {op.name!r} for {op.n}: at least one has to come to it")
        fence = self._fences.get(op.name) or _Fence(op.n)
        if fence.n != op.n:
            raise RequestError("value", f"fence {op.name!r} is for {fence.n}, who named that number first, not {op.n}")
        place = (session, number)

        def forget() -> None:
            fence.here.pop(place, None)
            if not fence.here and self._fences.get(op.name) is fence:
                del self._fences[op.name]

        answer = session.wait(number, forget)
        self._fences[op.name] = fence
        fence.here[place] = txn
        if len(fence.here) == fence.n:
            self._open(op.name, fence)
        return answer

    def _open(self, name: str, fence: _Fence) -> None:
        del self._fences[name]
        here, fence.here = fence.here, {}
        try:
            self._apply(tuple(op for txn in here.values() for op in txn))
        except RequestError as error:
            for session, number in here:
                session.error(number, error.kind, error.text)
            return
        for session, number in here:
            session.reply(number, self.kvs.version)


def _decode(ops: bytes) -> store.Txn:
    try:
        txn = _ops.decode(ops)
        for op in txn:
            if isinstance(op, store.Put):
                if len(op.data) > r.MAX_VALUE:
                    raise RequestError("value", f"{op.key}: a value of {len(op.data)} bytes; at most {r.MAX_VALUE} "
                                                "are kept under a key: store a file's name, or pieces")
                msgspec.msgpack.decode(op.data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RequestError("request", f"not a transaction: {error}") from None
    return txn


def _wrong(error: KvsError) -> RequestError:
    return RequestError(next((kind for cls, kind in _KINDS if isinstance(error, cls)), "value"), str(error))


def _prefixes(key: str) -> Iterable[str]:
    yield ""
    at = key.find(".")
    while at >= 0:
        yield key[:at]
        at = key.find(".", at + 1)
    yield key


def _send(session: Session, sub: int, changes: list[Change]) -> None:
    """Changes of one version stay in one frame, so that who goes on after it has missed none."""
    page: list[Any] = []
    size = version = 0
    for change in changes:
        if page and size > _PAGE and change.version != version:
            session.say(r.Items(sub, page, version))
            page, size = [], 0
        page.append([change.key, change.data, change.version])
        size += len(change.key) + len(change.data or b"")
        version = change.version
    if page:
        session.say(r.Items(sub, page, version))
