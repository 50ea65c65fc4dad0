"""Jobs, as clients ask for them: submitting, choosing, cancelling, holding, waiting, records."""

from __future__ import annotations

import array
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar, cast

import numpy as np

from mpiflux.instance.broker import LATER, Handler, RequestError, Session
from mpiflux.instance.broker_check import check_group
from mpiflux.instance.broker_feed import Selection
from mpiflux.instance.broker_results import Results
from mpiflux.instance.broker_ties import Ties
from mpiflux.instance.master import Master
from mpiflux.model import requests as r
from mpiflux.model.jobspec import Dependency, JobGroup, Request
from mpiflux.model.params import ParamTable
from mpiflux.model.retry import Retry
from mpiflux.model.states import State
from mpiflux.model.template import CompiledGroup, TemplateError
from mpiflux.sched.dependencies import BEGIN, HOLD
from mpiflux.store.schema import RunError

KINDS = ("ok", "any", "not_ok")
Place = tuple[Session, int]
_S = TypeVar("_S", ParamTable, Request, Retry)
_NO_PARAMS = ParamTable()
_NOTHING: dict[str, str] = {}
_REMEMBERED = 10_000
"""Shapes of jobs."""


class Jobs:
    """Implements :class:`mpiflux.instance.broker.DeskPart`.

    ``misfit`` says why a group fits nowhere, or nothing; ``cwd`` is where jobs run that name no directory.
    """

    def __init__(self, master: Master, results: Results, misfit: Callable[[JobGroup], str], ties: Ties) -> None:
        self.master, self.results, self.table = master, results, master.table
        self._misfit, self._ties = misfit, ties
        self._fits: dict[tuple[object, ...], str] = {}
        self._same: dict[object, object] = {}
        self._by_name: dict[str, array.array[int]] = {}
        """Numbers of groups."""
        self._known = 0
        self.closed: str | None = None
        """Why no jobs are taken; None while they are."""
        self._waiting: dict[int, dict[Place, r.Info]] = {}
        """Who waits for the end of a job."""
        self._drains: dict[Place, tuple[Selection, int]] = {}
        """Who waits for the end of many, and how many of them had not ended at the last look."""
        self._syncs: list[tuple[int, Place]] = []

    def handlers(self) -> Mapping[type, Handler]:
        return {r.Submit: self._submit, r.Cancel: self._cancel, r.Hold: self._hold, r.Urge: self._urge,
                r.Info: self._info, r.Resolve: self._resolve, r.Eventlog: self._eventlog, r.Drain: self._drain,
                r.Sync: self._sync}

    # -- submitting ------------------------------------------------------------------------------------------------

    def _submit(self, session: Session, number: int, op: r.Submit) -> list[list[int]]:
        if self.master.ending:
            raise RequestError("ended", "the instance is ending and takes no more jobs")
        if self.closed is not None:
            raise RequestError("request", "the queue is disabled and takes no jobs"
                                          f"{f': {self.closed}' if self.closed else ''} (`mpiflux queue enable`)")
        if not 0 < len(op.groups) <= r.MAX_GROUPS:
            raise RequestError("request", f"{len(op.groups)} groups in one request; from 1 to {r.MAX_GROUPS} may be")
        self._ties.check(op.tie)
        groups: list[JobGroup] = []
        index, first = len(self.table.groups), len(self.table) + 1
        for new in op.groups:
            group = self._group(new, index, first)
            groups.append(group)
            index, first = index + 1, group.stop_id
            if first - len(self.table) - 1 > r.MAX_SUBMITTED:
                raise RequestError("request", f"more than {r.MAX_SUBMITTED} jobs in one request; submit them in parts")
        for new, group in zip(op.groups, groups, strict=True):
            self.results.t_submit.append(self.master.now())
            self.master.vault.keep(group.number, new.secrets)
            self.master.submit(group, held=new.hold)
        if op.tie:
            self._ties.add(op.tie, groups[0].first_id, groups[-1].stop_id)
        return [[group.number, group.first_id, group.count] for group in groups]

    def _group(self, new: r.NewGroup, number: int, first: int) -> JobGroup:
        """Check one group. Raises RequestError that names what is wrong."""
        count = check_group(new)
        name = new.name or (os.path.basename(new.command[0].split()[0]) if new.command and new.command[0].split()
                            else "script")
        if name.removeprefix("#").isdecimal():
            name = "script"  # its program's name is a number, which means the job of that number
        after = [self._dependency(one, first) for one in new.after]
        if new.begin_time:
            after.append(Dependency("", BEGIN))
        if new.hold:
            after.append(Dependency("", HOLD))
        group = JobGroup(
            number=number, name=sys.intern(name), first_id=first, count=count, command=new.command, script=new.script,
            shell=new.shell, params=self._shared(new.params), env=new.env or _NOTHING, cwd=sys.intern(new.cwd),
            input=new.input, output=new.output, error=new.error, request=self._shared(new.resources),
            time_limit=new.time_limit or 0.0, retries=new.retries, retry=self._shared(new.retry),
            priority=new.urgency, begin_time=new.begin_time or 0.0, after=tuple(after), mpi=sys.intern(new.mpi),
            submitted=True, secrets=tuple(new.secrets))
        self._check_templates(group)
        key = group.request.key
        why = self._fits.get(key)
        if why is None:
            if len(self._fits) >= _REMEMBERED:
                self._fits.clear()
            why = self._fits[key] = self._misfit(group)
        if why:
            raise RequestError("value", why)
        return group

    def _shared(self, value: _S) -> _S:
        """The same value, the same object for groups that come one by one and are alike but for their commands: rank 0
        remembers all of them."""
        if isinstance(value, ParamTable):
            return value if value.columns else cast(_S, _NO_PARAMS)
        key = value.key if isinstance(value, Request) else value
        if len(self._same) >= _REMEMBERED:
            self._same.clear()
        return cast(_S, self._same.setdefault(key, value))

    def _check_templates(self, group: JobGroup) -> None:
        texts = [group.name, *group.command, group.script or "", group.cwd, group.input, group.output, group.error,
                 *group.env, *group.env.values()]
        if any("\0" in text for text in texts):
            raise RequestError("value", f"{group.name!r}: a zero byte in a name, a command, a path or a variable")
        try:
            compiled = CompiledGroup(group, self.master.workflow.directory)
            compiled.argv(0, 1), compiled.env_items(0, 1), compiled.cwd(0, 1)
        except (TemplateError, ValueError, LookupError) as error:
            raise RequestError("value", f"{group.name}: {error}") from None

    def _dependency(self, after: r.After, first: int) -> Dependency:
        if after.kind not in KINDS:
            raise RequestError("value", f"dependency {after.kind!r}: there are {', '.join(KINDS)}")
        if after.group:
            found = self._groups(after.group)
            if not found:
                raise RequestError("job", f"dependency on {after.group!r}: there is no such group")
            groups = [self.table.groups[number] for number in found]
            if len(groups) == 1 and groups[0].name == after.group and not groups[0].submitted:
                return Dependency(after.group, after.kind)
            if len(groups) == 1:
                return Dependency(f"#{groups[0].number}", after.kind)
            ids = tuple(job for group in groups for job in range(group.first_id, group.stop_id))
            return Dependency(after.group, after.kind, ids)
        wrong = [job for job in after.ids if not 0 < job <= len(self.table)]
        if wrong or not after.ids:
            raise RequestError("job", f"dependency on job {wrong[0]}: there is no such job" if wrong else
                               "a dependency on nothing")
        return Dependency("", after.kind, tuple(dict.fromkeys(after.ids)))

    # -- choosing --------------------------------------------------------------------------------------------------

    def _groups(self, name: str) -> Sequence[int]:
        """Numbers of the groups of a name, or ``#number``."""
        for group in self.table.groups[self._known:]:
            numbers = self._by_name.get(group.name)
            if numbers is None:
                numbers = self._by_name[group.name] = array.array("q")
            numbers.append(group.number)
        self._known = len(self.table.groups)
        number = name[1:]
        if name.startswith("#") and number.isascii() and number.isdigit() and len(number) < 20:
            return [int(number)] if int(number) < self._known else []
        return self._by_name.get(name, ())

    def named(self, name: str, known: int) -> list[tuple[int, int]]:
        """The jobs of the groups of a name, but for so many first ones, as ranges."""
        groups = self.table.groups
        return [(groups[number].first_id, groups[number].stop_id) for number in self._groups(name)[known:]]

    def selection(self, select: r.Select) -> Selection:
        """The jobs of a Select, but for its states. Raises RequestError when one does not exist."""
        if select.name:
            numbers = self._groups(select.name)
            if not numbers:
                raise RequestError("job", f"no jobs are called {select.name!r}")
            groups = [self.table.groups[number] for number in numbers]
            return Selection([(group.first_id, group.stop_id) for group in groups])
        if select.ids:
            for first, stop in select.ids:
                if not 0 < first < stop <= len(self.table) + 1:
                    raise RequestError("job", f"no job {first if stop - first == 1 else f'{first}-{stop - 1}'}: there "
                                              f"are {len(self.table)} jobs, from 1")
            return Selection(select.ids)
        return Selection(every=select.every)

    def chosen(self, select: r.Select) -> Any:
        """Ids of all jobs of a Select."""
        chosen = self.selection(select)
        n = len(self.table)
        ids = np.arange(1, n + 1) if chosen.every else np.fromiter(chosen.ids(), "i8", chosen.size)
        if select.states:
            try:
                states = [int(State[state.upper()]) for state in select.states]
            except KeyError as error:
                raise RequestError("value", f"state {error}: there are {', '.join(s.name for s in State)}") from None
            ids = ids[np.isin(self.table.state[ids - 1], states)]
        return ids

    def _resolve(self, session: Session, number: int, op: r.Resolve) -> list[tuple[int, int]]:
        return self.resolve(op.ref)

    def resolve(self, ref: str) -> list[tuple[int, int]]:
        """Ranges (first, stop) of the ids that a reference means, ascending. Raises RequestError."""
        if ref.isascii() and ref.isdigit() and len(ref) < 20:
            job = int(ref)
            self.selection(r.Select(ids=((job, job + 1),)))
            return [(job, job + 1)]
        name, index = ref, ""
        if not self._groups(name):
            name, _, index = ref.removesuffix("]").replace("[", ".").rpartition(".")
        numbers = self._groups(name)
        if not numbers or (index and not (index.isascii() and index.isdigit() and len(index) < 20)):
            raise RequestError("job", f"no job {ref!r}: give an id, a name, or NAME.INDEX as in sim.3")
        if not index:
            return Selection(self.named(name, 0)).ranges
        left = int(index)
        for group in map(self.table.groups.__getitem__, numbers):
            if left < group.count:
                return [(group.first_id + left, group.first_id + left + 1)]
            left -= group.count
        raise RequestError("job", f"no job {ref!r}: {name!r} has {int(index) - left} jobs, from index 0")

    # -- controlling -----------------------------------------------------------------------------------------------

    def _cancel(self, session: Session, number: int, op: r.Cancel) -> int:
        ids = self.chosen(op.select)
        return self.master.cancel(ids, op.reason) if len(ids) else 0

    def _hold(self, session: Session, number: int, op: r.Hold) -> int:
        chosen = self.selection(op.select)
        n = 0
        for group in list(self.table.groups.current()):
            ranges = list(chosen.cut(group.first_id, group.stop_id))
            if not ranges:
                continue
            whole = sum(stop - first for first, stop in ranges) == group.count
            if whole and self.master.hold(group.number, op.held):
                n += group.count
            elif op.held:
                n += sum(self.master.urge(first, stop, 0) for first, stop in ranges)
            else:
                n += sum(self.master.let_go(first, stop) for first, stop in ranges)
        return n

    def _urge(self, session: Session, number: int, op: r.Urge) -> int:
        if not 0 <= op.urgency <= 31:
            raise RequestError("value", f"urgency {op.urgency}: it is from 0, which holds jobs, to 31")
        ids = self.chosen(op.select)
        if not len(ids):
            return 0
        n = 0
        for group in list(self.table.groups.current(self.table.group_of(int(ids[0])))):
            mine = ids[(ids >= group.first_id) & (ids < group.stop_id)]
            if len(mine):
                bounds = [0, *(np.flatnonzero(np.diff(mine) != 1) + 1).tolist(), len(mine)]
                n += sum(self.master.urge(int(mine[low]), int(mine[high - 1]) + 1, op.urgency)
                         for low, high in pairwise(bounds))
        return n

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _info(self, session: Session, number: int, op: r.Info) -> Any:
        self.selection(r.Select(ids=((op.id, op.id + 1),)))
        if not op.ended or self.table.state[op.id - 1] == State.INACTIVE:
            return self._answer(session, number, op)
        place = (session, number)

        def forget() -> None:
            waiting.pop(place, None)
            if not waiting:
                self._waiting.pop(op.id, None)

        answer = session.wait(number, forget)
        waiting = self._waiting.setdefault(op.id, {})
        waiting[place] = op
        return answer

    def _answer(self, session: Session, number: int, op: r.Info) -> Any:
        session.wait(number, lambda: None)
        self.results.record(op.id, output=op.output, done=_teller(session, number))
        return LATER

    def ended(self, ids: Any) -> None:
        """These jobs are over."""
        if not self._waiting:
            return
        for job in ids.tolist():
            for (session, number), op in self._waiting.pop(job, {}).items():
                session.waiting.pop(number, None)
                self._answer(session, number, op)

    def _eventlog(self, session: Session, number: int, op: r.Eventlog) -> Any:
        self.selection(r.Select(ids=((op.id, op.id + 1),)))
        session.wait(number, lambda: None)
        self.results.read(lambda reader: [list(event) for event in reader.eventlog(op.id)], _teller(session, number))
        return LATER

    def _drain(self, session: Session, number: int, op: r.Drain) -> Any:
        place, chosen = (session, number), self.selection(op.select)

        def forget() -> None:
            self._drains.pop(place, None)

        answer = session.wait(number, forget)
        self._drains[place] = (chosen, -1)
        return answer

    def _sync(self, session: Session, number: int, op: r.Sync) -> Any:
        answer = session.wait(number, lambda: None)
        self._syncs.append((self.results.journal.flush(), (session, number)))
        return answer

    def turn(self, now: float) -> None:
        self.results.turn()
        if self._syncs:
            committed = self.results.journal.committed_seq
            for _, (session, number) in [one for one in self._syncs if one[0] <= committed]:
                session.reply(number, None)
            self._syncs = [one for one in self._syncs if one[0] > committed]
        if self._drains:
            inactive = self.table.counts().inactive
            for (session, number), (chosen, seen) in list(self._drains.items()):
                if inactive == seen:
                    continue
                self._drains[session, number] = (chosen, inactive)
                if self.is_over(chosen):
                    del self._drains[session, number]
                    session.reply(number, self._tally(chosen))

    def is_over(self, chosen: Selection) -> bool:
        """Whether all of these jobs have ended."""
        if chosen.every:
            counts = self.table.counts()
            return counts.inactive == counts.total
        state = self.table.state
        return all(bool((state[first - 1:stop - 1] == State.INACTIVE).all()) for first, stop in chosen.ranges)

    def _tally(self, chosen: Selection) -> list[int]:
        ranges = chosen.ranges if not chosen.every else [(1, len(self.table) + 1)]
        total = np.zeros(5, "i8")
        for first, stop in ranges:
            total += np.bincount(self.table.result[first - 1:stop - 1], minlength=5)[:5]
        return [int(n) for n in total[1:]]


def _teller(session: Session, number: int) -> Callable[[Any], None]:
    def tell(value: Any) -> None:
        if number not in session.waiting:
            return
        if isinstance(value, RunError):
            session.error(number, "job", str(value))
        else:
            session.reply(number, value)

    return tell
