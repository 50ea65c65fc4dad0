"""A rank of a virtual cluster: its inbox, its turns, the schedulers that it hosts and its side of its supervisors.

It is busy for a while and then looks at what has come, as :class:`mpiflux.instance.rank.Rank` does.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mpiflux.model import messages as m
from mpiflux.model.apart import executor_of, is_apart, scheduler_of
from mpiflux.overlay import address
from mpiflux.sched.scheduler import Scheduler
from mpiflux.sim.executor import Item
from mpiflux.sim.master import SimMaster
from mpiflux.sim.watch import Watcher

if TYPE_CHECKING:
    from mpiflux.sim.cluster import Cluster


@dataclass
class _Links:
    """A rank's side of its supervisors."""

    dead: set[int] = field(default_factory=set)
    declared: dict[int, list[Item]] = field(default_factory=dict)
    users: dict[int, dict[int, None]] = field(default_factory=dict)
    fences: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(executor, scheduler) to losses that the scheduler has not answered: what it sent before it heard of the last
    one must not reach the new supervisor."""


class SimRank:
    """A rank's loop, as :class:`mpiflux.instance.rank.Rank` runs it."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster, self.number = cluster, number
        self.schedulers: dict[int, Scheduler] = {}
        self.master: SimMaster | None = None
        self.links = _Links()
        self.busy = 0.0
        self.busy_until = cluster.engine.now
        self.stalled_until = 0.0
        self.watcher = cluster.watcher
        self._inbox: list[Item | int] = []
        """Messages, or the number of an executor whose link has closed."""
        self._local: deque[Item] = deque()
        self._due = math.inf
        self.later: dict[int, float] = {}
        """When schedulers want to settle though nothing comes, by number."""
        self._alarm = math.inf, 0
        """When the first of them does, and the event of that."""
        self._cost = 0.0
        self.alive = True
        self.retired: set[int] = set()
        """Schedulers of whom nothing is taken any more."""
        self.lost: set[int] = set()
        """Ranks likewise."""

    def arrive(self, items: Sequence[Item | int]) -> None:
        """Something has come from a supervisor, which wakes the rank."""
        if self.alive:
            self._inbox += items
            self.wake()

    def arrive_by_mpi(self, src: int, items: Sequence[Item]) -> None:
        """Something has come from another rank, which is noticed when this one looks next."""
        if self.alive and src not in self.lost:
            self._inbox += items
            self.wake(self._next_look())

    def die(self) -> None:
        """With all that it hosts; what it has sent arrives."""
        self.alive = False
        self._set_alarm(math.inf)
        self._inbox.clear()
        self._local.clear()

    def lose(self, ranks: Sequence[int]) -> None:
        """Rank 0 learns that others are gone."""
        cluster = self.cluster
        told = cluster.regrouping.lose(ranks)
        self.lost.update(ranks)
        cluster.nodes.update((node.id, node) for node in told.nodes)
        cluster.schedulers = [one for one in cluster.schedulers if one.number in cluster.regrouping.tree.nodes]
        self._inbox += [(address.control(rank), address.control(0), told)
                        for rank in sorted(cluster.regrouping.living)]
        self.wake()

    def _control(self, src: int, message: m.Message, outgoing: dict[tuple[int, int], list[Item]],
                 posted: dict[int, list[Item]]) -> None:
        cluster = self.cluster
        if isinstance(message, m.Regrouped):
            told = cluster.regrouping.regrouped(address.rank_of_control(src), message.generation, "lost")
            if told is not None:
                assert self.master is not None
                self.watcher.retired(self.retired, told.executors)
                self.watcher.sent(address.MASTER, 0, told)
                self._local.append((0, address.MASTER, told))
                self.master.cancel_impossible(cluster.regrouping.impossible, cluster.now)
            return
        if isinstance(message, m.Dismissed):
            cluster.end_rank(self.number)
            return
        assert isinstance(message, m.Regroup)
        self.lost.update(message.lost)
        self.retired.update(message.retired)
        for number in self.retired.intersection(self.schedulers):
            del self.schedulers[number]
            self.later.pop(number, None)
        for node in message.nodes:
            if node.rank == self.number:
                self.schedulers[node.id] = cluster.add_scheduler(node)
        mine = [number for number in message.executors if address.rank_of_executor(number) == self.number]
        for number in [*mine, *(one for one in cluster.executors if is_apart(one) and executor_of(one) in mine
                                and scheduler_of(one) in self.retired)]:
            self.links.dead.add(number)
            posted.pop(number, None)
            cluster.executors[number].cut_off()
            self._replace(number, outgoing)
        self._deliver((address.control(0), address.control(self.number), m.Regrouped(message.generation)), outgoing)

    def wake(self, when: float = 0.0) -> None:
        """Have a turn at ``when``, or as soon as it can."""
        when = max(when, self.busy_until, self.cluster.engine.now)
        if when < self._due:
            self._due = when
            self.cluster.engine.at(when, self._turn, when)

    def _next_look(self) -> float:
        """It looks ever less often since its last turn."""
        now, costs = self.cluster.engine.now, self.cluster.costs
        look, pause = self.busy_until, costs.poll
        while look < now and 0 < pause < costs.poll_longest:
            look += pause
            pause *= 2
        if look < now and costs.poll_longest:
            look += math.ceil((now - look) / costs.poll_longest) * costs.poll_longest
        return max(look, now)

    def stall(self, seconds: float) -> None:
        """It gets no CPU for a while."""
        self.busy_until = self.stalled_until = max(self.busy_until, self.cluster.engine.now) + seconds

    def unwatch(self) -> None:
        """It was given up: what it does from now on does not matter."""
        self.watcher = Watcher()

    def _turn(self, due: float) -> None:
        if due != self._due or not self.alive:
            return
        engine, costs = self.cluster.engine, self.cluster.costs
        now = engine.now
        self._due = math.inf
        if now < self.busy_until:
            self.wake()
            return
        self._cost = costs.turn
        outgoing: dict[tuple[int, int], list[Item]] = {}
        posted: dict[int, list[Item]] = {}
        inbox, self._inbox = self._inbox, []
        for item in inbox:
            if isinstance(item, int):
                self._replace(item, outgoing)
            elif address.is_executor(item[1]) or item[1] == address.control(0):
                self._deliver(item, outgoing)
            else:
                self._local.append(item)
        self._dispatch(now, outgoing, posted)
        if not self.alive:
            return
        batches = len(outgoing) + len(posted)
        self._cost += costs.batch * batches + costs.message * sum(map(len, (*outgoing.values(), *posted.values())))
        done = now + self._cost
        self.busy += self._cost
        self.busy_until = done
        for (communicator, rank), items in outgoing.items():
            self.cluster.to_rank(communicator, self.number, rank, items, done)
        for number, items in posted.items():
            self.cluster.to_executor(self.number, number, items, done)
        if self._inbox or self._local:
            self.wake()
        self._set_alarm(min(self.later.values(), default=math.inf))

    def _set_alarm(self, when: float) -> None:
        was, event = self._alarm
        if when == was:
            return
        if was > self.cluster.engine.now:
            self.cluster.engine.cancel(event)
        self._alarm = when, self.cluster.engine.at(when, self._ring) if when < math.inf else 0

    def _ring(self) -> None:
        self._alarm = math.inf, 0
        if self.alive:
            self.wake()

    def _dispatch(self, now: float, outgoing: dict[tuple[int, int], list[Item]], posted: dict[int, list[Item]]) -> None:
        watcher, local = self.watcher, self._local
        dirty = {number for number, when in self.later.items() if now >= when}
        while True:
            while local:
                dst, src, message = local.popleft()
                if src in self.retired:
                    continue
                scheduler = self.schedulers.get(dst)
                if scheduler is not None:
                    watcher.received(dst, src, message)
                    self._charge(dst, self.cluster.cost_in(dst, message))
                    scheduler.receive(src, message, now)
                    dirty.add(dst)
                elif address.is_control(dst):
                    self._control(src, message, outgoing, posted)
                    dirty -= self.retired
                elif dst == address.MASTER:
                    assert self.master is not None
                    self._cost += self.cluster.cost_master(message)
                    self.master.handle(src, message, now)
                elif address.is_executor(dst):
                    self._post(dst, src, message, posted)
            if self.master is not None:
                self.master.turn(now)
                for message in self.master.collect():
                    watcher.sent(address.MASTER, 0, message)
                    self._deliver((0, address.MASTER, message), outgoing)
            for number in sorted(dirty):
                actions = self.schedulers[number].settle(now)
                self.later[number] = self.schedulers[number].due
                self._charge(number, self.cluster.costs.settle)
                for dst, message in actions:
                    watcher.sent(number, dst, message)
                    self._charge(number, self.cluster.cost_out(message))
                    self._deliver((dst, number, message), outgoing)
            dirty.clear()
            if not local:
                return

    def _charge(self, scheduler: int, seconds: float) -> None:
        self._cost += seconds
        work = self.cluster.work[scheduler]
        work.busy += seconds
        work.messages += 1

    def _deliver(self, item: Item, outgoing: dict[tuple[int, int], list[Item]]) -> None:
        dst, src, _ = item
        rank = self.cluster.rank_of(dst)
        if rank == self.number:
            self._local.append(item)
        else:
            outgoing.setdefault((address.communicator(dst, src), rank), []).append(item)

    # -- its supervisors -----------------------------------------------------------------------------------------

    def _post(self, number: int, src: int, message: m.Message, posted: dict[int, list[Item]]) -> None:
        links, item = self.links, (number, src, message)
        if is_apart(number) and number not in self.cluster.executors:
            if isinstance(message, m.Stop):
                self._local.append((src, number, m.Stopped()))
            if isinstance(message, m.Grant):
                # the real one goes as soon as its job has ended, which nobody sees
                self.cluster.start_executor(self.number, number, links.declared.get(number, ()))
        if number not in self.cluster.executors and not is_apart(number):
            return
        if isinstance(message, m.ExecutorLost):
            links.fences[number, src] -= 1
            return
        if isinstance(message, m.Declare):
            links.declared.setdefault(number, []).append(item)
        elif isinstance(message, m.Forget):
            links.declared[number] = [one for one in links.declared.get(number, ())
                                      if isinstance(one[2], m.Declare) and one[2].group.number not in message.groups]
        elif self.cluster.fences and links.fences[number, src]:
            return
        links.users.setdefault(number, {})[src] = None
        if number not in links.dead and number in self.cluster.executors:
            posted.setdefault(number, []).append(item)

    def _replace(self, number: int, outgoing: dict[tuple[int, int], list[Item]]) -> None:
        if number not in self.links.dead:
            return
        self.links.dead.discard(number)
        self.cluster.start_executor(self.number, number, self.links.declared.get(number, ()))
        for src in self.links.users.get(number, ()):
            self.links.fences[number, src] += 1
            self._deliver((src, number, m.ExecutorLost(number)), outgoing)
