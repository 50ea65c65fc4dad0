"""Messages between clients: topics, services, queues. Nothing of it outlives the instance. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping
from typing import Any

from mpiflux.instance.broker import LATER, Handler, RequestError, Session
from mpiflux.model import requests as r

MAX_NAME = 1024
MAX_PARTS = 32
"""Names in a topic or a pattern: how long it takes to find who listens is proportional to it."""
QUEUE_BYTES = 1 << 30
"""What all queues together may hold."""
ITEM_BYTES = 200
"""What an item costs besides its data."""
GRACE = 15.0
"""Seconds for which a queue outlives its last owner, who may be on the way back after a lost connection."""


class Messages:
    """Implements :class:`mpiflux.instance.broker.DeskPart`."""

    def __init__(self) -> None:
        self._topics = _Topics()
        self._services = _Services()
        self._queues = _Queues()

    def handlers(self) -> Mapping[type, Handler]:
        return {r.Publish: self._topics.publish, r.Subscribe: self._topics.subscribe, r.Serve: self._services.serve,
                r.Ask: self._services.ask, r.Answer: self._services.answer, r.Push: self._queues.push,
                r.Pull: self._queues.pull, r.Done: self._queues.done, r.Own: self._queues.own,
                r.QueueInfo: self._queues.info}

    def turn(self, now: float) -> None:
        self._queues.turn(now)


def check_name(name: str, what: str) -> tuple[str, ...]:
    """The parts of a dotted name. Raises RequestError."""
    parts = tuple(name.split("."))
    if not all(parts) or len(name) > MAX_NAME:
        raise RequestError("value", f"{what} {name[:60]!r}: names joined by single dots, as in 'md.energy', at most "
                                    f"{MAX_NAME} characters")
    return parts


def _check_topic(name: str, what: str) -> tuple[str, ...]:
    parts = check_name(name, what)
    if len(parts) > MAX_PARTS:
        raise RequestError("value", f"{what} {name[:60]!r} has {len(parts)} names; at most {MAX_PARTS} are allowed")
    return parts


class _Node:
    """One level of the tree of patterns: ``here`` are the subscriptions whose pattern ends at it; ``repeats``: it is
    that of a ``**``."""

    __slots__ = ("below", "here", "repeats")

    def __init__(self, repeats: bool = False) -> None:
        self.repeats = repeats
        self.below: dict[str, _Node] = {}
        self.here: dict[tuple[Session, int], None] = {}


class _Topics:
    def __init__(self) -> None:
        self._root = _Node()

    def subscribe(self, session: Session, number: int, op: r.Subscribe) -> None:
        path = [self._root]
        parts = _normal(_check_topic(op.pattern, "pattern"))
        for part in parts:
            path.append(path[-1].below.setdefault(part, _Node(part == "**")))
        key = (session, op.sub)

        def end() -> None:
            path[-1].here.pop(key, None)
            for node, part in zip(reversed(path[:-1]), reversed(parts), strict=True):
                below = node.below.get(part)
                if below is not None and not below.here and not below.below:
                    del node.below[part]

        try:
            session.subscribe(op.sub, end)
        except RequestError:
            end()
            raise
        path[-1].here[key] = None

    def publish(self, session: Session, number: int, op: r.Publish) -> int:
        parts = _check_topic(op.topic, "topic")
        if "*" in parts or "**" in parts:
            raise RequestError("value", f"topic {op.topic!r}: a message has one topic; * is for subscribers")
        found = _match(self._root, parts)
        for subscriber, sub in found:
            subscriber.say(r.Items(sub, [[op.topic, op.data]]))
        return len(found)


def _normal(parts: tuple[str, ...]) -> list[str]:
    """A pattern that matches the same, with at most one ``**`` between two names, after the ``*`` that are there."""
    out: list[str] = []
    for part in parts:
        if part == "*" and out and out[-1] == "**":
            out.insert(-1, part)
        elif part != "**" or not out or out[-1] != "**":
            out.append(part)
    return out


def _match(root: _Node, parts: tuple[str, ...]) -> dict[tuple[Session, int], None]:
    """Everybody whose pattern the parts match: part by part, with the nodes where patterns can be."""
    here: dict[_Node, None] = {}
    _reach(here, root)
    for part in parts:
        there: dict[_Node, None] = {}
        for node in here:
            if node.repeats:
                there[node] = None
            for below in (node.below.get(part), node.below.get("*")):
                if below is not None:
                    _reach(there, below)
        here = there
    return {place: None for node in here for place in node.here}


def _reach(nodes: dict[_Node, None], node: _Node) -> None:
    """A node, and that of a ``**`` below it, which need not stand for anything."""
    nodes[node] = None
    if "**" in node.below:
        nodes[node.below["**"]] = None


class _Server:
    """One who serves: a subscription, and the calls that it has not answered."""

    __slots__ = ("calls", "session", "sub")

    def __init__(self, session: Session, sub: int) -> None:
        self.session, self.sub = session, sub
        self.calls: dict[int, tuple[Session, int]] = {}


class _Services:
    def __init__(self) -> None:
        self._servers: dict[str, list[_Server]] = {}
        self._by_call: dict[int, tuple[_Server, Session]] = {}
        self._next = 0

    def serve(self, session: Session, number: int, op: r.Serve) -> None:
        check_name(op.service, "service")
        server = _Server(session, op.sub)
        servers = self._servers.setdefault(op.service, [])

        def end() -> None:
            if server in servers:
                servers.remove(server)
            if not servers and self._servers.get(op.service) is servers:
                del self._servers[op.service]
            for call, (asker, its_number) in server.calls.items():
                self._by_call.pop(call, None)
                asker.error(its_number, "lost", f"who served {op.service!r} has gone before it answered; it may have "
                                                "done what was asked, or not")
            server.calls.clear()

        try:
            session.subscribe(op.sub, end)
        except RequestError:
            end()
            raise
        servers.append(server)

    def ask(self, session: Session, number: int, op: r.Ask) -> Any:
        servers = self._servers.get(op.service)
        if not servers:
            known = ", ".join(list(self._servers)[:8]) or "none"
            raise RequestError("service", f"nobody serves {op.service!r} now; services there are: {known}")
        # the least busy one; of equals whoever was asked longest ago
        server = min(servers, key=lambda one: len(one.calls))
        servers.remove(server)
        servers.append(server)
        self._next += 1
        call = self._next

        def forget() -> None:
            server.calls.pop(call, None)
            self._by_call.pop(call, None)

        session.wait(number, forget)
        server.calls[call] = (session, number)
        self._by_call[call] = (server, server.session)
        server.session.say(r.Items(server.sub, [[call, op.data]]))
        return LATER

    def answer(self, session: Session, number: int, op: r.Answer) -> None:
        found = self._by_call.get(op.call)
        if found is None or found[1] is not session:
            return  # who asked has left, or waits no longer
        del self._by_call[op.call]
        asker, its_number = found[0].calls.pop(op.call)
        if op.error is not None:
            asker.error(its_number, "remote", op.error)
        else:
            asker.reply(its_number, op.data)


class _Queue:
    __slots__ = ("gone", "items", "name", "owners", "pulls", "taken")

    def __init__(self, name: str) -> None:
        self.name = name
        self.items: list[tuple[float, int, bytes, int]] = []
        """A heap of (−priority, item number, data, how often a consumer died that had it)."""
        self.pulls: deque[tuple[Session, int, bool]] = deque()
        self.taken = 0
        """Items with consumers that have not said that they are done."""
        self.owners = 0
        self.gone = False
        """It went with its owner: what comes back to it is thrown away."""


class _Queues:
    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._taken: dict[int, tuple[_Queue, tuple[float, int, bytes, int], Session]] = {}
        self._next = 0
        self._bytes = 0
        self._orphans: dict[_Queue, float] = {}
        """Queues whose owners have gone, and when these go too; 0 until that is known."""

    def turn(self, now: float) -> None:
        for queue, when in list(self._orphans.items()):
            if not when:
                self._orphans[queue] = now + GRACE
            elif now >= when:
                del self._orphans[queue]
                self._drop(queue)

    def own(self, session: Session, number: int, op: r.Own) -> None:
        queue = self._queue(op.queue)

        def end() -> None:
            queue.owners -= 1
            if not queue.owners:
                self._orphans[queue] = 0.0

        try:
            session.subscribe(op.sub, end)
        except RequestError:
            self._tidy(queue)
            raise
        queue.owners += 1
        self._orphans.pop(queue, None)

    def _drop(self, queue: _Queue) -> None:
        queue.gone = True
        del self._queues[queue.name]
        self._bytes -= sum(_size(item[2]) for item in queue.items)
        queue.items.clear()
        while queue.pulls:
            session, number, _ = queue.pulls.popleft()
            session.error(number, "lost", f"who owned the queue {queue.name!r} has gone, and the queue with it")

    def _tidy(self, queue: _Queue) -> None:
        """Forget a queue that nobody has anything to do with."""
        if not (queue.items or queue.pulls or queue.taken or queue.owners or queue in self._orphans) \
                and self._queues.get(queue.name) is queue:
            del self._queues[queue.name]

    def _queue(self, name: str) -> _Queue:
        found = self._queues.get(name)
        if found is None:
            check_name(name, "queue")
            found = self._queues[name] = _Queue(name)
        return found

    def push(self, session: Session, number: int, op: r.Push) -> int:
        size = sum(map(_size, op.items))
        if self._bytes + size > QUEUE_BYTES:
            raise RequestError("value", f"queues hold {self._bytes >> 20} MiB already, at most {QUEUE_BYTES >> 20}: "
                                        "pull first, or push names of files")
        if op.priority != op.priority:
            raise RequestError("value", "a priority that is no number")
        queue = self._queue(op.queue)
        self._bytes += size
        for data in op.items:
            self._next += 1
            heapq.heappush(queue.items, (-op.priority, self._next, data, 0))
        self._serve(queue)
        return len(queue.items)

    def pull(self, session: Session, number: int, op: r.Pull) -> Any:
        if not number:
            raise RequestError("request", "a pull wants an answer")
        queue = self._queue(op.queue)
        entry = (session, number, op.ack)

        def forget() -> None:
            if entry in queue.pulls:
                queue.pulls.remove(entry)
            self._tidy(queue)

        try:
            if not queue.items and not op.wait:
                raise RequestError("empty", f"queue {op.queue!r} is empty")
            answer = session.wait(number, forget)
        except RequestError:
            self._tidy(queue)
            raise
        queue.pulls.append(entry)
        self._serve(queue)
        return answer

    def _serve(self, queue: _Queue) -> None:
        while queue.items and queue.pulls:
            session, number, ack = queue.pulls.popleft()
            item = heapq.heappop(queue.items)
            _, place, data, died = item
            if ack:
                self._bytes -= _size(data)
            else:
                self._lend(queue, item, session)
            session.reply(number, [place, data, died])
        self._tidy(queue)

    def _lend(self, queue: _Queue, item: tuple[float, int, bytes, int], session: Session) -> None:
        """Until the consumer says that it is done, or is gone."""
        number = item[1]
        self._taken[number] = (queue, item, session)
        queue.taken += 1
        # its place among the subscriptions of the session is where the end of the session looks
        session.subs[-number] = lambda: self._back(number, died=1)

    def _back(self, number: int, *, died: int = 0) -> None:
        found = self._taken.pop(number, None)
        if found is not None:
            queue, (priority, _, data, before), session = found
            session.subs.pop(-number, None)
            queue.taken -= 1
            if queue.gone:
                self._bytes -= _size(data)
                return
            heapq.heappush(queue.items, (priority, number, data, before + died))
            self._serve(queue)

    def done(self, session: Session, number: int, op: r.Done) -> None:
        found = self._taken.get(op.item)
        if found is None or found[2] is not session:
            raise RequestError("value", f"item {op.item} is not yours, or was dealt with already")
        if op.back:
            self._back(op.item)
            return
        del self._taken[op.item]
        session.subs.pop(-op.item, None)
        queue, item, _ = found
        queue.taken -= 1
        self._bytes -= _size(item[2])
        self._tidy(queue)

    def info(self, session: Session, number: int, op: r.QueueInfo) -> dict[str, list[int]]:
        return {name: [len(queue.items), queue.taken, len(queue.pulls)] for name, queue in self._queues.items()}


def _size(data: bytes) -> int:
    """What an item costs. That of an empty one too: a frame holds tens of millions of them."""
    return len(data) + ITEM_BYTES
