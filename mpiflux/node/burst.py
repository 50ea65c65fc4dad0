"""Short jobs in a row without Python between them: what :file:`quick.c` is given, and what comes back.

A burst has the idle leases of a shape and the jobs of one group at the head of that shape's backlog. As long as nothing
but the plain course of short jobs happens, the C part goes on. For anything else it returns, what still runs becomes
ordinary :class:`Job` objects, and the supervisor does with them what it does without a C part: so all that jobs can
do, or that can be done to them, is written once, in Python.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from mpiflux.model import messages as m
from mpiflux.node import quick
from mpiflux.node.backlog import Backlog, Span
from mpiflux.node.capture import Pipes
from mpiflux.node.job import ANNOUNCED, Job
from mpiflux.node.launch import CannotStart, Group, Lease
from mpiflux.node.spawn import Environment, StringArray, string_array

if TYPE_CHECKING:
    from mpiflux.node.supervisor import Supervisor

_AHEAD = 64
"""Jobs whose arguments are made at a time, where they differ."""
_CPUS = 1024


class Burst:
    """The supervisor's side of the C part. ``offset`` is Unix time less the monotonic clock, ``young`` and ``flush``
    are the supervisor's."""

    def __init__(self, supervisor: Supervisor, library: ctypes.CDLL, offset: float, young: float, flush: float) -> None:
        self._sup, self._library = supervisor, library
        state = self._state = quick.State()
        self._run = library.mpiflux_quick_run
        self._address = ctypes.addressof(state)
        state.epoll, state.signals, state.null = supervisor.epoll.fileno(), supervisor.signals, supervisor.null
        state.children = supervisor.endings.strays.fileno()
        state.offset, state.young, state.flush = offset, young, flush
        self._young = young
        self._masks: dict[frozenset[int], ctypes.Array[ctypes.c_char]] = {}
        allowed = supervisor.launcher.allowed
        self._mask_bytes = (max(_CPUS, max(allowed) + 1) + 63) // 64 * 8
        state.cpus_size = self._mask_bytes
        state.allowed = ctypes.addressof(self._mask(allowed))
        self._slots = (quick.Slot * 0)()
        self._leases: list[Lease] = []
        self._pipes: list[Pipes] = []
        self._environments: list[Environment] = []
        self._messages: list[tuple[int, int, m.Message]] = []
        """What came in the middle of a burst and waits for its end."""
        self._kept: object = None
        """What the queue points to."""

    def takes(self, group: Group) -> bool:
        """Whether jobs of this group are plain enough."""
        spec = group.spec
        plain = not (group.parallel or group.reads or group.files or spec.base) and spec.script is None
        return plain and group.fixed_cwd and not 0 < spec.time_limit < self._young and self._state.children >= 0

    def run(self, shape: int, leases: list[Lease], backlog: Backlog) -> bool:
        """Run jobs of this shape on these idle leases for as long as only short ones end; then the leases without a job
        are idle again. False: nothing was done, as these jobs are not plain, or there are no descriptors.
        """
        sup, state = self._sup, self._state
        group = backlog.spans[0].group
        if not (backlog.spans[0].attempt < ANNOUNCED and self.takes(group) and sup.outside.quiet
                and all(lease.tasks == 1 == len(lease.place.cpus) and lease.owner == backlog.owner for lease in leases)
                and self._place(group, leases)):
            return False
        while True:
            try:
                queued = self._fill(group, backlog)
            except CannotStart:
                free = [n for n, slot in enumerate(self._slots) if not slot.pid]
                reason, state.slot = (quick.CANNOT, free[0]) if free else (quick.TIMER, 0)
                break
            state.eager = 0 < backlog.low == backlog.count - queued
            reason = self._run(self._address)
            if reason == quick.FAILED:
                raise MemoryError
            self._fold(shape, group, backlog)
            if sup.outbox.congested or not self._goes_on(reason):
                break
            if (sup.idle or sup.backlog.get(shape) is not backlog or not backlog.count
                    or backlog.spans[0].group is not group or backlog.spans[0].attempt >= ANNOUNCED):
                break
        self._hand_over(reason, shape, group, backlog)
        return True

    def _goes_on(self, reason: int) -> bool:
        """Whether what the C part returned for can be done beside its jobs."""
        sup, state = self._sup, self._state
        if reason == quick.MORE:
            if sup.outbox.urgent:
                sup.outbox.flush()
        elif reason == quick.TIMER:
            now = state.now
            old = now - self._young
            if any(slot.pid and slot.t_start <= old for slot in self._slots) or not sup.keep_time(now):
                return False
        elif reason != quick.EVENTS or not self._take_feeds():
            return False
        state.due, state.oldest = sup.due, sup.outbox.oldest
        return True

    def _take_feeds(self) -> bool:
        """Whether all that is to be done is to take more jobs: then it has been done. Other messages are kept."""
        sup, now = self._sup, self._state.now
        self._messages = [item for frame in sup.link.receive() for item in m.decode(frame)]
        if not self._messages or not all(isinstance(message, m.Feed) for _, _, message in self._messages):
            return False
        self._deal(now)
        return True

    def _deal(self, now: float) -> None:
        messages, self._messages = self._messages, []
        for _, src, message in messages:
            self._sup.handle(src, message, now)

    # -- before --------------------------------------------------------------------------------------------------

    def _mask(self, cpus: frozenset[int]) -> ctypes.Array[ctypes.c_char]:
        mask = self._masks.get(cpus)
        if mask is None:
            bits = sum(1 << cpu for cpu in cpus)
            mask = self._masks[cpus] = ctypes.create_string_buffer(
                bits.to_bytes(self._mask_bytes, "little"), self._mask_bytes)
        return mask

    def _place(self, group: Group, leases: list[Lease]) -> bool:
        """Set up what is the same for all jobs of the burst. False where something is wrong with it, or there are no
        descriptors for pipes: the ordinary way says so."""
        sup, state, launcher = self._sup, self._state, self._sup.launcher
        pipes: list[Pipes] = []
        try:
            self._environments = [launcher.environment(group, lease.place) for lease in leases]
            for _ in leases:
                pipes.append(sup.spare.pop() if sup.spare else Pipes())
                pipes[-1].begin(group.limit)
        except (OSError, ValueError):
            for one in pipes:
                sup.recycle(one)
            return False
        self._leases, self._pipes = leases, pipes
        if len(self._slots) != len(leases):
            self._slots = (quick.Slot * len(leases))()
        state.bound = -1 if launcher.bound == launcher.allowed else -2
        for n, (slot, lease) in enumerate(zip(self._slots, leases, strict=True)):
            cpus = lease.place.cpus[0] or launcher.allowed
            slot.envp, slot.digits[:] = self._environments[n].addresses
            slot.cpus = ctypes.addressof(self._mask(cpus))
            slot.out, slot.out_child = pipes[n].out.fd, pipes[n].out.child_fd
            slot.err, slot.err_child = pipes[n].err.fd, pipes[n].err.child_fd
            slot.r_id, slot.pid = lease.r_id, 0
            if cpus == launcher.bound:
                state.bound = n
        state.slots, state.n_slots = ctypes.addressof(self._slots), len(leases)
        state.n_own, state.own_at = group.varying, self._environments[0].first_slot
        state.cwd = group.cwd(0, 1) or None
        state.first_id, state.limit, state.owner = group.first_id, group.limit, leases[0].owner
        state.default_policy, state.unbind = launcher.behind, len(sup.leases) > 1
        state.known = len(sup.jobs)
        state.due, state.oldest = sup.due, sup.outbox.oldest
        return True

    def _fill(self, group: Group, backlog: Backlog) -> int:
        """Queue jobs of the backlog's first span, up to where a report is due; how many. Raises CannotStart where
        something is wrong with the first of them."""
        state = self._state
        span = backlog.spans[0]
        most = len(span)
        if backlog.count > backlog.low > 0:
            most = min(most, backlog.count - backlog.low)
        state.constant = group.constant
        if not group.constant:
            most = min(most, _AHEAD)
        jobs = self._prepare(group, span, 1 if group.constant else most)
        arrays = [array for array, _, _ in jobs]
        owns = [own for _, _, own in jobs]
        paths = (ctypes.c_char_p * len(jobs))(*(path for _, path, _ in jobs))
        pointers = [(ctypes.c_void_p * len(jobs))(*map(ctypes.addressof, of)) for of in (arrays, owns)]
        self._kept = jobs, paths, pointers
        state.argvs, state.owns = map(ctypes.addressof, pointers)
        state.paths = ctypes.addressof(paths)
        state.index, state.step, state.attempt = span.next, span.step, span.attempt
        state.at, state.count = 0, most if group.constant else len(jobs)
        return int(state.count)

    def _prepare(self, group: Group, span: Span, count: int) -> list[tuple[StringArray, bytes, StringArray]]:
        """(arguments, program, own variables) of the first jobs; fewer than ``count`` where something is wrong with
        one of them."""
        launcher, compiled, cwd = self._sup.launcher, group.compiled, group.cwd(0, 1)
        found: list[tuple[StringArray, bytes, StringArray]] = []
        for index in range(span.next, span.next + count * span.step, span.step):
            try:
                argv = compiled.argv(index, span.attempt)
                own = [name + b"=" + value for name, value in compiled.env_items(index, span.attempt)]
                found.append((string_array(argv), launcher.program(group, argv[0], cwd), string_array(own)))
            except (CannotStart, ValueError) as error:
                if found:
                    break
                raise CannotStart(126, str(error)) from None
        return found

    # -- after ---------------------------------------------------------------------------------------------------

    def _fold(self, shape: int, group: Group, backlog: Backlog) -> None:
        """Take over what was done: the backlog is shorter by it, and the report longer."""
        sup, state = self._sup, self._state
        if state.started:
            sup.shortage.since = 0.0
            backlog.advance(state.started, state.now)
            if backlog.count == backlog.low > 0:
                sup.outbox.urgent = True
        if state.ended:
            report = sup.outbox.report(backlog.owner)
            report.records.append(ctypes.string_at(state.records, state.records_size))
            if state.output_size:
                report.output.append(ctypes.string_at(state.output, state.output_size))
            report.count(shape, group.number, state.seconds, state.ended)
            sup.outbox.oldest = sup.outbox.oldest or state.oldest
            sup.soon(state.due)
        state.started = state.ended = state.records_size = state.output_size = 0
        state.seconds = 0.0

    def _hand_over(self, reason: int, shape: int, group: Group, backlog: Backlog) -> None:
        """Make ordinary jobs of what runs, and go on with what has brought us back."""
        sup, state, launcher = self._sup, self._state, self._sup.launcher
        if state.bound == -1:
            launcher.bound = launcher.allowed
        elif state.bound >= 0:
            launcher.bound = self._leases[state.bound].place.cpus[0] or launcher.allowed
        now = sup.clock()
        failed = self._leases[state.slot] if reason == quick.CANNOT else None
        for slot, lease, pipes in sorted(zip(self._slots, self._leases, self._pipes, strict=True),
                                         key=lambda entry: entry[0].t_start):
            if slot.pid:
                sup.adopt(Job(group, slot.index, slot.attempt, lease, pipes, slot.t_start), [slot.pid])
                continue
            sup.recycle(pipes)
            if lease is not failed:
                sup.idle.setdefault(shape, []).append(lease)
        if not backlog.count and sup.backlog.get(shape) is backlog:
            del sup.backlog[shape]
        if reason in (quick.UNUSUAL, quick.UNKNOWN):
            sup.reaped(state.pid, state.status, state.utime, state.stime, state.maxrss, now)
        elif reason == quick.SIGNAL:
            sup.outside.note(state.signal)
        self._deal(now)
        if failed is not None:
            # for the person: the ordinary way knows what to say, and whether another try may help
            sup.start_next(failed, backlog)
        if reason in (quick.UNUSUAL, quick.UNKNOWN, quick.SIGNAL):
            # the signal that told of ended children may have been taken
            sup.reap(now)


def build(supervisor: Supervisor, offset: float, young: float, flush: float) -> Burst | None:
    """The supervisor's burst, where the C part is there."""
    library = quick.load()
    return Burst(supervisor, library, offset, young, flush) if library is not None else None
