"""Subscriptions to the events of jobs: each is a place in the feed, so a slow reader costs no memory. Pure.

At most :data:`WINDOW` events of a subscription are under way; the rest stays in the feed until the client says what
it has taken. Subscribers of few jobs are found by the jobs that something happened to, so a thousand of them that wait
cost nothing while others' jobs run.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from mpiflux.instance.broker import LATER, Handler, RequestError, Session
from mpiflux.instance.broker_feed import Feed, Selection
from mpiflux.model import requests as r

WINDOW = 8192
_PAGE = 2048
FEW = 64
"""A subscription to at most so many jobs is found by its jobs."""
_ONE = re.compile(r"\.\d+$|\]$")


class _Stream:
    __slots__ = ("asleep", "chosen", "finite", "group", "known", "names", "next", "session", "sub", "under_way",
                 "unread")

    def __init__(self, session: Session, op: r.Events, chosen: Selection, since: int) -> None:
        self.session, self.sub, self.chosen = session, op.sub, chosen
        self.names = frozenset(op.names)
        self.finite = op.finite
        self.group = "" if op.finite else op.select.name
        """Of this name are all its jobs, also those that are submitted later."""
        self.known = 0
        """How many groups of that name are chosen."""
        self.next = since
        self.asleep = False
        """It has been told all that the feed had when it was last looked at, and waits for more."""
        self.under_way: deque[tuple[int, int]] = deque()
        """(number after them, how many): sent and not taken yet."""
        self.unread = 0


class Streams:
    """Implements :class:`mpiflux.instance.broker.DeskPart`."""

    def __init__(self, feed: Feed, select: Callable[[r.Select], Selection],
                 is_over: Callable[[Selection], bool],
                 named: Callable[[str, int], list[tuple[int, int]]] = lambda name, known: []) -> None:
        """``named`` gives the jobs of the groups of a name but for so many first ones, as ranges."""
        self.feed, self._select, self._is_over, self._jobs_of = feed, select, is_over, named
        self._streams: dict[tuple[Session, int], _Stream] = {}
        self._wide: dict[_Stream, None] = {}
        self._by_job: dict[int, dict[_Stream, None]] = {}
        self._named: dict[_Stream, None] = {}
        self._seen = feed.next

    def handlers(self) -> Mapping[type, Handler]:
        return {r.Events: self._events, r.Taken: self._taken}

    def _events(self, session: Session, number: int, op: r.Events) -> Any:
        chosen = self._choose(op)
        if op.since > self.feed.next:
            raise RequestError("history", f"event {op.since} is still to come (the next one is {self.feed.next}); this "
                                          "instance is another than the one that told you: ask from 0 on")
        stream = _Stream(session, op, chosen, self.feed.next if op.since < 0 else op.since)
        key = (session, op.sub)

        def end() -> None:
            self._streams.pop(key, None)
            self._named.pop(stream, None)
            self._wide.pop(stream, None)
            if not self._is_wide(stream):
                self._leave(stream)

        session.subscribe(op.sub, end)
        self._streams[key] = stream
        self._enter(stream)
        if stream.group:
            stream.known = len(self._jobs_of(stream.group, 0))
            self._named[stream] = None
        session.reply(number, stream.next)
        self._pump(stream)
        return LATER

    def _choose(self, op: r.Events) -> Selection:
        """The jobs that there are. A name may be followed before it is submitted, but for what looks like one job of
        it, which would be waited for in vain."""
        name = op.select.name
        if op.finite or not name or _ONE.search(name):
            return self._select(op.select)
        return Selection(self._jobs_of(name, 0))

    def _enter(self, stream: _Stream) -> None:
        if self._is_wide(stream):
            self._wide[stream] = None
        else:
            for job in stream.chosen.ids():
                self._by_job.setdefault(job, {})[stream] = None

    def _leave(self, stream: _Stream) -> None:
        for job in stream.chosen.ids():
            subscribers = self._by_job.get(job)
            if subscribers is not None:
                subscribers.pop(stream, None)
                if not subscribers:
                    del self._by_job[job]

    def _grown(self, stream: _Stream) -> bool:
        """Whether jobs of its name have come, which it hears of from now on."""
        new = self._jobs_of(stream.group, stream.known)
        if new:
            if not self._is_wide(stream):
                self._leave(stream)
            stream.known += len(new)
            stream.chosen.add(new)
            self._enter(stream)
        return bool(new)

    @staticmethod
    def _is_wide(stream: _Stream) -> bool:
        return stream.chosen.every or stream.chosen.size > FEW

    def _taken(self, session: Session, number: int, op: r.Taken) -> None:
        stream = self._streams.get((session, op.sub))
        if stream is None:
            return
        while stream.under_way and stream.under_way[0][0] <= op.upto:
            stream.unread -= stream.under_way.popleft()[1]
        if not stream.asleep:
            self._pump(stream)

    def turn(self, now: float) -> None:
        """Tell what is new."""
        seen, self._seen = self._seen, self.feed.next
        if seen == self._seen or not self._streams:
            return
        grown = [stream for stream in self._named if self._grown(stream)]
        touched = {**self._wide, **dict.fromkeys(grown)}
        if self._by_job:
            for job in self.feed.jobs_since(seen, self._by_job):
                touched.update(self._by_job[job])
        for stream in touched:
            if stream.asleep:
                # what lies between was looked through for it already
                stream.next = max(stream.next, seen)
                self._pump(stream)

    def _pump(self, stream: _Stream) -> None:
        stream.asleep = False
        if stream.group:
            self._grown(stream)
        while stream.unread < WINDOW:
            events, stream.next = self.feed.read(stream.next, stream.chosen, stream.names, _PAGE)
            if events:
                stream.session.say(r.Items(stream.sub, events, stream.next))
                stream.under_way.append((stream.next, len(events)))
                stream.unread += len(events)
            if stream.next >= self.feed.next:
                stream.asleep = True
                if stream.finite and self._is_over(stream.chosen):
                    self._finish(stream)
                return

    def _finish(self, stream: _Stream) -> None:
        end = stream.session.subs.get(stream.sub)
        stream.session.ended(stream.sub)
        if end is not None:
            end()
