"""A whole instance on virtual machines: the real schedulers, everything around them simulated.

Ranks, supervisors and links are processes that are busy for a while and then look at what has come. The schedulers
are those of :mod:`mpiflux.sched`, fed the same messages that MPI would bring them.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mpiflux.model import messages as m
from mpiflux.model.apart import executor_of, is_apart, scheduler_of
from mpiflux.model.jobspec import Workflow
from mpiflux.model.records import SIZE
from mpiflux.model.tree import TreeNode
from mpiflux.overlay import address
from mpiflux.overlay.plan import Plan, make_plan
from mpiflux.overlay.regroup import Regrouping, Tree
from mpiflux.sched.assembly import assemble
from mpiflux.sched.dealing import Dealing
from mpiflux.sched.leasing import Leasing
from mpiflux.sched.scheduler import Below, Scheduler
from mpiflux.sim.costs import Costs
from mpiflux.sim.engine import Delay, Engine
from mpiflux.sim.executor import Behaviour, Item, SimExecutor
from mpiflux.sim.journal import Saved
from mpiflux.sim.links import Cut, CutNetwork
from mpiflux.sim.lives import Lives
from mpiflux.sim.machine import Machine
from mpiflux.sim.master import SimMaster
from mpiflux.sim.watch import Watcher

START = 1000.0
"""Virtual time at which every simulation begins: not 0, which schedulers and executors take for 'never'."""


class Deadlock(AssertionError):
    """Nothing will ever happen again, and jobs are left."""


@dataclass
class Level:
    """What the schedulers of one depth of the tree did."""

    schedulers: int = 0
    busy: float = 0.0
    """Seconds of CPU of all of them."""
    busiest: float = 0.0
    messages: int = 0


@dataclass
class _Work:
    busy: float = 0.0
    messages: int = 0


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
            outgoing.setdefault((_communicator(dst, src), rank), []).append(item)

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


class Cluster:
    """See the module's text. ``quantum`` is that of :class:`SimExecutor`; ``delay`` replaces that of the costs,
    ``plan`` the tree that the workflow asks for. ``timeout`` is that of ranks' signs of life, 0: none are given;
    ``cuts`` are in virtual time. ``saved``: what a cluster before this one has left, which goes on at ``start``.

    Raises PlanError and PolicyError for a workflow that cannot run there.
    """

    def __init__(self, machine: Machine, workflow: Workflow, behaviour: Behaviour, *, costs: Costs | None = None,
                 watcher: Watcher | None = None, delay: Delay | None = None, quantum: float = 0.0,
                 arrivals: Sequence[tuple[float, m.Chunk]] = (), fences: bool = True, plan: Plan | None = None,
                 timeout: float = 0.0, cuts: Sequence[Cut] = (), saved: Saved | None = None,
                 start: float = START) -> None:
        self.machine, self.behaviour, self.quantum, self.fences = machine, behaviour, quantum, fences
        self.costs = costs or Costs()
        self.watcher = watcher or Watcher()
        self.engine = Engine(start)
        self.network = CutNetwork(self.engine, delay or self._usual_delay, cuts)
        self.plan: Plan = plan or make_plan(machine.nodes, workflow.hierarchy, workflow.policy,
                                           machine.consumables)
        self.work = defaultdict[int, _Work](_Work)
        self.ranks = [SimRank(self, number) for number in range(machine.ranks)]
        self.schedulers: list[Scheduler] = []
        self.nodes: dict[int, TreeNode] = {}
        """All schedulers that there ever were."""
        tree = [TreeNode(s.id, s.parent, s.children, s.rank, s.policy, s.distribution, s.resources, s.consumables)
                for s in self.plan.schedulers]
        self.nodes.update((node.id, node) for node in tree)
        self.regrouping = Regrouping(Tree(tree, machine.table), range(machine.ranks))
        for node in tree:
            self.ranks[node.rank].schedulers[node.id] = self.add_scheduler(node)
        self.executors: dict[int, SimExecutor] = {}
        self.lives = Lives(self, timeout) if timeout else None
        for rank, numbers in enumerate(machine.executors):
            for number in numbers:
                self.start_executor(rank, number, ())
        self.master = SimMaster(workflow, self.costs.commit, self._wake_master, self.watcher, arrivals, saved)
        self.ranks[0].master = self.master

    # -- running -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Hand out what may start. Nothing happens before :meth:`run` or :meth:`step`."""
        self.master.begin(self.engine.now)
        self.ranks[0].wake()

    def step(self) -> bool:
        """One event; False when nothing will ever happen again."""
        return self.engine.step()

    def run(self) -> None:
        """To the end. Raises Deadlock when that never comes."""
        self.begin()
        while self.step():
            pass
        self.check_over()

    def check_over(self) -> None:
        """Raise Deadlock unless every job has ended, or the run was interrupted and has stopped."""
        if self.master.stopping:
            if not self.master.stopped:
                raise Deadlock(f"the run was interrupted and never stopped\n{self.dump()}")
        elif not self.master.over:
            raise Deadlock(f"nothing happens any more, and jobs are left\n{self.dump()}")

    @property
    def now(self) -> float:
        return self.engine.now

    def levels(self) -> list[Level]:
        """What schedulers did, by depth."""
        levels = [Level() for _ in range(self.plan.depth)]
        for planned in self.plan.schedulers:
            level, work = levels[planned.depth], self.work[planned.id]
            level.schedulers += 1
            level.busy += work.busy
            level.messages += work.messages
            level.busiest = max(level.busiest, work.busy)
        return levels

    def dump(self) -> str:
        """Where everything is, for a person who looks for what went wrong."""
        lines = [f"t={self.now - START:.6f} {self.master.table.counts()}"]
        for scheduler in self.schedulers:
            lines.append(f"scheduler {scheduler.number}: queued {[entry.chunk for entry in scheduler.queue][:8]}, "
                         f"{_describe(scheduler.below)}")
        for number, executor in self.executors.items():
            if executor.running or executor.leases or any(executor.backlog.values()):
                backlog = [span.chunk() for spans in executor.backlog.values() for span in spans]
                lines.append(f"executor {number:#x}: runs {sorted(executor.running)}, "
                             f"leases {sorted(executor.leases)}, backlog {backlog}")
        return "\n".join(lines)

    # -- faults --------------------------------------------------------------------------------------------------

    def kill_executor(self, number: int) -> None:
        """A supervisor dies now; its rank notices when it has read all that it had sent."""
        executor = self.executors.get(number)
        if executor is not None and executor.alive:
            rank = address.rank_of_executor(number)
            executor.die()
            self.ranks[rank].links.dead.add(number)
            self.network.send(("up", number), rank, rank, self.now, self.ranks[rank].arrive, [number])

    def kill_rank(self, number: int, noticed: float) -> None:
        """A rank dies now, with its supervisors; rank 0 learns of it so many seconds later, or by its silence."""
        if number in self.regrouping.living and self.ranks[number].alive:
            self.end_rank(number)
            if self.lives is None:
                self.engine.at(self.now + noticed, self.ranks[0].lose, [number])

    def executors_of(self, rank: int) -> list[int]:
        """Its supervisors, and those that it has made for one job each."""
        return [one for one in self.executors if address.rank_of_executor(one) == rank]

    def end_rank(self, number: int) -> None:
        """A rank leaves now, with its supervisors; nobody is told."""
        self.ranks[number].die()
        for executor in self.executors_of(number):
            one = self.executors.pop(executor)
            if one.alive:
                one.cut_off()

    # -- wiring --------------------------------------------------------------------------------------------------

    def start_executor(self, rank: int, number: int, declared: Sequence[Item]) -> None:
        """Put a fresh supervisor in place."""
        def arrive(items: list[Item]) -> None:
            if not executor.cut:
                self.ranks[rank].arrive(items)

        def send(items: list[Item], when: float) -> None:
            self.network.send(("up", number), rank, rank, when, arrive, items)

        executor = SimExecutor(number, self.engine, self.costs, self.behaviour, self.ranks[rank].watcher, send,
                               self.quantum, self.kill_executor)
        for _, _, message in declared:
            assert isinstance(message, m.Declare)
            executor.groups[message.group.number] = message.group
        self.executors[number] = executor
        if self.lives is not None:
            self.lives.born(executor)

    def to_rank(self, communicator: int, src: int, dst: int, items: list[Item], when: float) -> None:
        if dst not in self.ranks[src].lost:
            self.network.send((communicator, src, dst), src, dst, when, self.ranks[dst].arrive_by_mpi, src, items)

    def add_scheduler(self, node: TreeNode) -> Scheduler:
        """A scheduler of the tree, wired as a real instance wires it."""
        scheduler = make_scheduler(node, self.nodes, self.machine.table)
        self.schedulers.append(scheduler)
        return scheduler

    def to_executor(self, rank: int, number: int, items: list[Item], when: float) -> None:
        # bound now: what is under way to a supervisor dies with it
        self.network.send(("down", number), rank, rank, when, self.executors[number].arrive, items)

    def rank_of(self, endpoint: int) -> int:
        if endpoint == address.MASTER:
            return 0
        if address.is_executor(endpoint):
            return address.rank_of_executor(endpoint)
        if address.is_control(endpoint):
            return address.rank_of_control(endpoint)
        return self.nodes[endpoint].rank

    def _wake_master(self, when: float) -> None:
        self.engine.at(when, self.ranks[0].wake)

    def _usual_delay(self, src: int, dst: int, now: float) -> float:
        where = self.machine.node_of_rank
        return self.costs.local if where[src] == where[dst] else self.costs.remote

    # -- costs ---------------------------------------------------------------------------------------------------

    def cost_in(self, dst: int, message: m.Message) -> float:
        """What it costs a scheduler to take a message."""
        costs = self.costs
        cost = costs.message
        if isinstance(message, m.Report) and message.records:
            each = costs.deal_job if self.nodes[dst].children else costs.feed_job
            cost += each * (len(message.records) // SIZE)
        elif isinstance(message, m.Submit):
            cost += costs.deal_chunk * len(message.chunks)
        return cost

    def cost_out(self, message: m.Message) -> float:
        """What it costs a scheduler to decide on a message. A job's own cost is taken when its record comes."""
        if isinstance(message, m.Submit):
            return self.costs.deal_chunk * len(message.chunks)
        if isinstance(message, m.Feed):
            return self.costs.feed_chunk * len(message.chunks)
        return self.costs.grant if isinstance(message, m.Grant) else 0.0

    def cost_master(self, message: m.Message) -> float:
        """What it costs rank 0 to apply and journal a message."""
        if isinstance(message, m.Report) and message.records:
            return self.costs.master_report + self.costs.master_record * (len(message.records) // SIZE)
        return self.costs.message


def make_scheduler(node: TreeNode, tree: Mapping[int, TreeNode], table: dict[tuple[int, int], int]) -> Scheduler:
    """A scheduler of the tree, wired as a real instance wires it."""
    return assemble(node, node.parent if node.parent >= 0 else address.MASTER,
                    lambda child: tree[child].resources, table)


def _communicator(dst: int, src: int) -> int:
    """As in the instance: the scheduler whose communicator both are in."""
    if address.is_control(dst) or address.is_control(src):
        return address.EVERYBODY
    if address.is_executor(src):
        return dst
    return src if address.is_executor(dst) else min(dst, src)


def _describe(below: Below) -> str:
    if isinstance(below, Dealing):
        return "children " + ", ".join(f"{child.endpoint}: {child.outstanding} out"
                                       for child in below.children.values() if child.outstanding)
    if isinstance(below, Leasing):
        return f"free {below.pool.free_cores}/{below.pool.total_cores} cores"
    return ""
