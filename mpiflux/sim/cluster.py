"""A whole instance on virtual machines: the real schedulers, everything around them simulated.

Ranks, supervisors and links are processes that are busy for a while and then look at what has come. The schedulers
are those of :mod:`mpiflux.sched`, fed the same messages that MPI would bring them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpiflux.model import messages as m
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
from mpiflux.sim.rank import SimRank
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


def _describe(below: Below) -> str:
    if isinstance(below, Dealing):
        return "children " + ", ".join(f"{child.endpoint}: {child.outstanding} out"
                                       for child in below.children.values() if child.outstanding)
    if isinstance(below, Leasing):
        return f"free {below.pool.free_cores}/{below.pool.total_cores} cores"
    return ""
