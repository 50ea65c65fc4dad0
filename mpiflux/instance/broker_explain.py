"""Why a job has not started: what rank 0 knows of it, else what the scheduler says that has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mpiflux.instance.broker import Handler, RequestError, Session
from mpiflux.instance.master import Master
from mpiflux.model import messages as m
from mpiflux.model import requests as r
from mpiflux.model.states import Result, State
from mpiflux.sched.dependencies import BEGIN, HOLD
from mpiflux.store.elementwise import EACH
from mpiflux.store.jobtable import NOBODY

Fact = tuple[str, float]
LISTED = 5
"""Jobs that are named of those that one waits for."""


class Explaining:
    """Implements :class:`mpiflux.instance.broker.DeskPart`. ``stopped`` says why nothing is started at all, if so."""

    def __init__(self, master: Master, stopped: Callable[[], str]) -> None:
        self._master, self._stopped = master, stopped
        self._asked: dict[int, list[tuple[Session, int]]] = {}

    def handlers(self) -> Mapping[type, Handler]:
        return {r.Explain: self._explain}

    def turn(self, now: float) -> None:
        """Nothing to do."""

    def _explain(self, session: Session, number: int, op: r.Explain) -> Any:
        table = self._master.table
        if not 0 < op.id <= len(table):
            raise RequestError("job", f"no job {op.id}: there are {len(table)} jobs, from 1")
        facts = self.known(op.id)
        if facts:
            return facts
        group = table.groups[table.group_of(op.id)]
        place = (session, number)
        answer = session.wait(number, lambda: waiting.remove(place))
        waiting = self._asked.setdefault(op.id, [])
        waiting.append(place)
        if len(waiting) == 1:
            self._master.reach(m.Explain(op.id, group.number, op.id - group.first_id))
        return answer

    def explained(self, message: m.Explained) -> None:
        """A scheduler has answered."""
        for session, number in self._asked.pop(message.id, []):
            session.reply(number, [list(fact) for fact in message.facts])

    def known(self, job: int) -> list[Fact]:
        """What rank 0 knows by itself; nothing when a scheduler has to be asked."""
        master, table = self._master, self._master.table
        state = State(int(table.state[job - 1]))
        if state == State.INACTIVE:
            return [(f"it has ended: {Result(int(table.result[job - 1])).name}", 0.0)]
        if state == State.RUN:
            return [("it runs", 0.0)]
        group = master.groups[table.group_of(job)]
        facts: list[Fact] = []
        if group.number in master.deadline.too_late:
            facts.append((master.deadline.why(group), 0.0))
        if state == State.DEPEND:
            facts += self._dependencies(job)
        if not master.urgency(job):
            facts.append((f"it is held: its urgency is 0; `mpiflux job urgency {job} default` lets it go", 0.0))
        if facts:
            return facts
        if table.owner[job - 1] == NOBODY:
            when = master.tried_again(job)
            return [("it failed and is tried again after a wait, at", when)] if when else [
                ("its dependencies are met; it is handed out as soon as that is on disk", 0.0)]
        return [(text, 0.0)] if (text := self._stopped()) else []

    def _dependencies(self, job: int) -> list[Fact]:
        master, table = self._master, self._master.table
        group = master.groups[table.group_of(job)]
        facts: list[Fact] = []
        for dependency in group.after:
            if dependency.kind == BEGIN:
                if master.dependencies.is_early(group.number):
                    facts.append(("its time has not come: it may start at", master.begin_of(group)))
            elif dependency.kind == HOLD:
                if master.dependencies.is_held(group.number):
                    facts.append(("it was submitted to be held until it is released", 0.0))
            elif dependency.kind != EACH:
                facts += self._waits_for(dependency.group, dependency.ids)
        for other in master.elements.missing(group, job - group.first_id):
            facts.append((f"it waits for {self._name(other)}, job {other}, which is in "
                          f"{State(int(table.state[other - 1])).name}", 0.0))
        return facts

    def _waits_for(self, name: str, ids: tuple[int, ...]) -> list[Fact]:
        table = self._master.table
        if ids:
            missing = [other for other in ids if table.state[other - 1] != State.INACTIVE]
            if not missing:
                return []
            names = ", ".join(f"{self._name(other)} ({other})" for other in missing[:LISTED])
            more = ", …" if len(missing) > LISTED else ""
            return [(f"it waits for {len(missing)} of {len(ids)} jobs: {names}{more}", 0.0)]
        group = self._master.dependencies.group(name)
        left = group.count - sum(table.group_ended(group.number))
        text = f"it waits for {group.name}: {left:,} of its {group.count:,} jobs have not ended"
        return [(text, 0.0)] if left else []

    def _name(self, job: int) -> str:
        group = self._master.groups[self._master.table.group_of(job)]
        return f"{group.name}[{group.base + job - group.first_id}]"
