"""Rank 0 before the tree starts: workflow, plan, run directory. Everything wrong is found here, as RunError."""

from __future__ import annotations

import array
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mpiflux import __version__
from mpiflux.instance.alarm import suspicion
from mpiflux.instance.broker_desk import Desk
from mpiflux.instance.broker_results import Results
from mpiflux.instance.checks import check, is_text, not_text
from mpiflux.instance.deadline import deadline
from mpiflux.instance.log import NAME, Logged, RunLog
from mpiflux.instance.master import Master
from mpiflux.instance.options import RunError, RunInfo, RunObserver, RunOptions
from mpiflux.instance.resuming import foresee, take_up
from mpiflux.instance.site import Site
from mpiflux.instance.vault import Vault
from mpiflux.model import hostlist, idset
from mpiflux.model.jobspec import JobGroup, Workflow
from mpiflux.model.messages import Urgency
from mpiflux.overlay import address
from mpiflux.overlay.plan import Plan, draw, explain_misfits
from mpiflux.store.crashes import Crashes
from mpiflux.store.jobtable import JobTable
from mpiflux.store.journal import Journal, JournalError
from mpiflux.store.kvs import Kvs
from mpiflux.store.runlock import Held

COPY = "workflow.yaml"
"""The workflow as run, in the run directory."""


@dataclass
class Prepared:
    """A run that is ready to start. Without ``journal`` it was a dry run."""

    options: RunOptions
    workflow: Workflow
    site: Site
    plan: Plan
    run_dir: str = ""
    journal: Journal | None = None
    table: JobTable | None = None
    kvs: Kvs = field(default_factory=Kvs)
    t_submit: array.array[float] = field(default_factory=lambda: array.array("d"))
    """By group."""
    urged: list[Urgency] = field(default_factory=list)
    waits: list[tuple[float, Any]] = field(default_factory=list)
    crashes: Crashes = field(default_factory=Crashes)
    removed: tuple[int, ...] = ()
    """Groups that are not in the workflow file any more."""
    gone: Mapping[int, Any] = field(default_factory=dict)
    """Ids of the jobs of other groups that are not, by group."""
    notes: list[str] = field(default_factory=list)
    """What a person should hear of what was taken over."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What ``instance.json`` says."""
    observer: Logged | None = None
    """Whom to tell from now on; it writes the log too."""

    def master(self, observer: RunObserver, clock: Callable[[], float]) -> Master:
        assert self.journal is not None and self.table is not None
        master = Master(self.workflow, self.journal, self.table, observer, cores=self.site.total_cores,
                        ranks=len(self.site.node_of_rank), clock=clock,
                        fail_fast=self.options.fail_fast,
                        deadline=deadline(clock(), self.options.time_limit, self.options.allocation_end),
                        t_submit=self.t_submit, urged=self.urged, waits=self.waits, removed=self.removed,
                        gone=self.gone, vault=Vault(self.table.groups, os.environ), crashes=self.crashes,
                        suspicion=suspicion(os.environ))
        return master

    def desk(self, master: Master, instance: str) -> Desk:
        """Who deals with clients."""
        site, hosts = self.site, [node.name for node in self.site.nodes]
        results = Results(master.table, master.journal, hosts, self.t_submit, self.run_dir)

        def misfit(group: JobGroup) -> str:
            if master.lives is not None and (left := master.lives.misfit(group)):
                return left
            return "\n".join(explain_misfits(self.plan, [group]))

        self.kvs.limit = self.options.kvs_limit
        return Desk(master, results, self.kvs, instance=instance, run_dir=self.run_dir, cores=site.total_cores,
                    gpus=site.total_gpus, misfit=misfit,
                    node_of=lambda endpoint: hosts[site.node_of_rank[address.rank_of_control(endpoint)]],
                    note=self.observer.trouble if self.observer is not None else lambda text: None)

    def announce(self, instance: str, doors: Sequence[str]) -> None:
        """Say in the run directory where clients can connect: a path for every node, or an empty text."""
        assert self.journal is not None
        names = [node.name for node in self.site.nodes]
        facts = {"instance": instance, "doors": [{"node": name, "path": path}
                                                 for name, path in zip(names, doors, strict=True) if path]}
        self.journal.set_meta(**facts)
        _write_facts(self.run_dir, {**self.facts, **facts})

    def finish(self, master: Master, observer: RunObserver, now: float) -> int:
        """Commit, tell, and give the exit status."""
        status = master.exit_status()
        try:
            master.close(now)
        except JournalError as error:
            observer.error(str(error))
            status = 3
        observer.end(master.view, status)
        return status


def prepare(options: RunOptions, site: Site, notes: list[str], observer: RunObserver) -> Prepared:
    """Check everything, make the run directory, open the journal. Raises RunError."""
    checked = check(options, site, _refusals(options))
    prepared = Prepared(options, checked.workflow, site, checked.plan)
    info = _info(prepared, [*notes, *options.notes], checked.misfits)
    if options.dry_run:
        foreseen = foresee(options, checked.workflow, time.time()) if options.resume else []
        observer.dry_run(replace(info, notes=(*info.notes, *foreseen)))
    if checked.misfits:
        raise RunError(checked.mistakes)
    if options.dry_run:
        return prepared
    fresh = not _open(prepared)
    assert prepared.table is not None
    if fresh and options.resume:
        info = replace(info, notes=(*info.notes, f"{prepared.run_dir} holds no run yet: starting it"))
    info = replace(info, workflow=prepared.workflow, notes=(*info.notes, *prepared.notes))
    prepared.observer = Logged(observer, RunLog(os.path.join(prepared.run_dir, NAME)))
    prepared.observer.begin(replace(info, run_dir=prepared.run_dir, resumed=prepared.table.counts().inactive))
    return prepared


def _refusals(options: RunOptions) -> list[str]:
    """Why the run directory that is asked for cannot be used."""
    run_dir = os.path.abspath(options.run_dir or "")
    if not is_text(run_dir):
        return [not_text(run_dir)]
    if options.trouble:
        return [options.trouble]
    if (options.rerun or options.rerun_changed) and not options.resume:
        return ["--rerun and --rerun-changed are for a run that is gone on with: add --resume"]
    if options.dry_run:
        return []
    if not options.run_dir:
        return ["--resume needs the directory of the run to go on with: --run-dir DIR"] if options.resume else []
    exists = os.path.exists(os.path.join(run_dir, "run.db"))
    if exists and not options.resume:
        return [f"{run_dir} holds another run: go on with it by --resume, or choose another --run-dir"]
    if os.path.isdir(run_dir) and not exists and os.listdir(run_dir):
        return [f"{run_dir} exists and is not empty, and is no run directory: choose another --run-dir"]
    return []


def _info(prepared: Prepared, notes: list[str], misfits: tuple[str, ...]) -> RunInfo:
    site, plan = prepared.site, prepared.plan
    return RunInfo(prepared.workflow, plan, "", len(site.node_of_rank), tuple(node.name for node in site.nodes),
                   site.total_cores, site.total_gpus, tuple(dict.fromkeys([*notes, *plan.notes])), misfits)


def _open(prepared: Prepared) -> bool:
    """Make or take over the run directory; whether it held this run before."""
    options, workflow = prepared.options, prepared.workflow
    run_dir = os.path.abspath(options.run_dir or _default_directory(workflow))
    exists = os.path.exists(os.path.join(run_dir, "run.db"))
    now = time.time()
    try:
        journal = Journal(run_dir, sync_window=options.sync_window)
    except (JournalError, Held) as error:
        raise RunError(str(error)) from None
    prepared.journal, prepared.run_dir = journal, run_dir
    try:
        prepared.table = _resumed(prepared, now) if exists else _fresh(prepared, now)
        _describe(prepared, now)
    except BaseException as error:
        try:
            journal.close()
        except JournalError as full:
            raise RunError(str(full), 3) from error
        if isinstance(error, OSError):
            cure = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
            raise RunError(f"{run_dir} cannot be written: {error.strerror}; {cure} and go on with run --resume",
                           3) from error
        raise
    return exists


def _default_directory(workflow: Workflow) -> str:
    stem = f"mpiflux-run-{workflow.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    name, n = stem, 1
    while os.path.exists(name):
        n += 1
        name = f"{stem}-{n}"
    return name


def _fresh(prepared: Prepared, now: float) -> JobTable:
    table, journal = JobTable(), prepared.journal
    assert journal is not None
    for group in prepared.workflow.groups:
        table.add_group(group)
        journal.append_group(group, now)
        prepared.t_submit.append(now)
    return table


def _resumed(prepared: Prepared, now: float) -> JobTable:
    """The table of what earlier instances did."""
    assert prepared.journal is not None
    taken = take_up(prepared.options, prepared.workflow, prepared.journal, prepared.run_dir, now)
    prepared.workflow, prepared.removed, prepared.gone = taken.workflow, taken.removed, taken.gone
    prepared.notes = taken.notes
    resumed = taken.resumed
    prepared.kvs, prepared.urged, prepared.waits = resumed.kvs, resumed.urged, resumed.waits
    prepared.crashes = resumed.crashes
    prepared.t_submit = array.array("d", resumed.t_submit)
    return resumed.table


def _describe(prepared: Prepared, now: float) -> None:
    """What a reader of the run directory wants to know of this instance."""
    site, workflow, journal = prepared.site, prepared.workflow, prepared.journal
    assert journal is not None
    names = [node.name for node in site.nodes]
    resources = [{"node": node.name, "cores": idset.encode(range(len(node.cpus))),
                  "gpus": idset.encode(range(len(node.gpus))), "memory": node.memory,
                  "consumables": workflow.node_consumables} for node in site.nodes]
    facts = {"version": __version__, "workflow": workflow.name, "source": os.path.abspath(workflow.source),
             "workflow_dir": workflow.directory, "t_start": now, "state": "running", "pid": os.getpid(),
             "nodes": names, "nodelist": hostlist.encode(names), "ranks": len(site.node_of_rank),
             "cores": site.total_cores, "gpus": site.total_gpus, "resources": resources,
             "consumables": workflow.consumables, "plan": draw(prepared.plan),
             "tree": _tree(prepared.plan, names),
             "schedulers": len(prepared.plan.schedulers), "lost": [], "cwd": os.getcwd()}
    journal.set_meta(**facts)
    prepared.facts = facts
    _write_facts(prepared.run_dir, facts)
    try:
        shutil.copyfile(workflow.source, os.path.join(prepared.run_dir, COPY))
    except OSError:
        pass  # it was read from a pipe; the groups in the journal say the same


def _write_facts(run_dir: str, facts: Mapping[str, Any]) -> None:
    path = os.path.join(run_dir, "instance.json")
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        # what changes is in the journal
        json.dump({key: value for key, value in facts.items() if key != "state"}, file, indent=1)
    os.replace(f"{path}.new", path)


def _tree(plan: Plan, names: list[str]) -> list[dict[str, Any]]:
    """The schedulers for programs to read; ids are positions in the list."""
    return [{"id": s.id, "parent": s.parent, "children": list(s.children), "rank": s.rank, "name": s.name,
             "policy": s.policy.name, "distribution": s.distribution,
             "resources": [{"node": names[r.node], "cores": idset.encode(r.cores), "gpus": idset.encode(r.gpus)}
                           for r in s.resources]}
            for s in plan.schedulers]
