"""What ``run`` says at its end, and what a dry run says instead: lines of text."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mpiflux.cli.console import duration, near, plural, printable, program, rate, shorten, signal_name
from mpiflux.instance.options import RunInfo, RunOptions
from mpiflux.model import hostlist

if TYPE_CHECKING:
    from mpiflux.instance.view import View
    from mpiflux.model.jobspec import JobGroup

FAILURES = 5
TEXT_WIDTH = 100


def hosts(names: Sequence[str]) -> str:
    """``node01``, or ``2 nodes (node[01-02])``."""
    if len(names) == 1:
        return names[0]
    return f"{len(names):,} nodes ({shorten(host_list(names), 60)})"


def host_list(names: Sequence[str]) -> str:
    try:
        return hostlist.encode(names)
    except ValueError:
        return ",".join(names)


def how_it_ended(job: dict[str, Any]) -> str:
    """``exit 1``, ``SIGSEGV``, ``time limit``, ``canceled``, ``not started`` …"""
    result, code = job["result"], job["returncode"]
    if result == "TIMEOUT":
        return "time limit"
    if result == "CANCELED":
        return "canceled"
    if code is None:
        return ""
    return signal_name(-code) if code < 0 else f"exit {code}"


def summary(options: RunOptions, info: RunInfo, view: View, status: int) -> list[str]:
    """The summary of a run that has ended, with an empty line before it."""
    c = view.counts
    elapsed = max(view.now - view.t_start, 0.0)
    ended = max(c.inactive - info.resumed, 0)
    verb = "interrupted" if view.interrupted else "failed" if status == 3 else "finished"
    first = f"{info.workflow.name} {verb} after {duration(elapsed)}: {c.inactive:,} of {plural(c.total, 'job')} done"
    if verb == "finished" and c.inactive == c.total:
        first = f"{info.workflow.name} finished in {duration(elapsed)}: {plural(c.total, 'job')}"
    if elapsed > 0:
        first += f", {rate(ended / elapsed)}"
        if view.cores and not options.null_exec:
            share = min(100.0, 100 * view.busy / (elapsed * view.cores))
            first += f", {share:.0f} % of {plural(view.cores, 'core')} busy"
    rows = [("completed", c.completed), ("failed", c.failed), ("timed out", c.timeout), ("canceled", c.canceled),
            ("not done", c.total - c.inactive)]
    width = len(f"{c.total:,}")
    lines = ["", first]
    lines += [f"  {number:>{width},} {word}" for word, number in rows if number or word == "completed"]
    extra = [f"{plural(number, word)}" for number, word in ((info.resumed, "job"),) if number]
    if extra:
        lines.append(f"  {info.resumed:,} of them were done before this instance")
    if view.retried:
        lines.append(f"  {plural(view.retried, 'attempt')} failed and ran again")
    if view.lost:
        lines.append(f"  {plural(view.lost, 'attempt')} lost with a supervisor or a rank and ran again")
    if view.signalled and not view.interrupted:
        lines.append(f"  {plural(view.signalled, 'attempt')} ended by a signal from outside and ran again")
    if view.doubtful:
        lines.append(f"  {view.doubtful:,} of those not done had ended, but so close to the signal that it may have "
                     "been its doing")
    lines += failures(info, view)
    if view.interrupted or status == 3 or c.inactive < c.total:
        lines.append(f"go on with:  {resume_command(options, info)}")
    return lines


def failures(info: RunInfo, view: View) -> list[str]:
    """The first few jobs that failed, and how to see more."""
    from mpiflux.store.reader import RunError, open_run

    bad = view.counts.failed + view.counts.timeout
    if not view.failures:
        return []
    directory = shlex.quote(near(info.run_dir))
    table: list[tuple[str, str, str, str]] = []
    try:
        with open_run(info.run_dir) as reader:
            for id in view.failures[:FAILURES]:
                job = reader.job(id)
                text = job["reason"] or last_line(reader.output(id, 2)) or "(nothing on stderr)"
                table.append((f"{job['name']}[{job['index']}]", f"job {id}", how_it_ended(job), text))
    except RunError as error:
        return [f"the failures cannot be shown: {error}"]
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    lines = [f"first {len(table)} of {bad:,} failures:" if bad > len(table) else "failures:" if bad > 1 else "failure:"]
    lines += ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + "  "
              + shorten(printable(row[3]), TEXT_WIDTH) for row in table]
    lines.append(f"more:  {program()} job show {view.failures[0]} {directory}")
    if bad > len(table):
        lines.append(f"all:   {program()} jobs {directory} --filter failed,timeout")
    return lines


def last_line(data: bytes) -> str:
    """The last line with anything on it."""
    for raw in reversed(data[-8192:].splitlines()):
        text = raw.decode("utf-8", "replace").strip()
        if text:
            return text
    return ""


def resume_command(options: RunOptions, info: RunInfo) -> str:
    """What goes on with this run: the same command, in the same run directory."""
    words = [*program().split(), "run", options.workflow, "--run-dir", near(info.run_dir), "--resume"]
    for name, value in options.overrides.items():
        words += ["--set", f"{name}={value}"]
    given: dict[str, object] = {
        "--hierarchy": options.hierarchy, "--policy": options.policy, "--cores-per-node": options.cores_per_node,
        "--gpus-per-node": options.gpus_per_node}
    for option, choice in given.items():
        if choice is not None:
            words += [option, str(choice)]
    if options.fail_fast:
        words.append("--fail-fast")
    if options.null_exec:
        words += ["--exec", "null"]
    return shlex.join(words)


def dry_run(info: RunInfo) -> list[str]:
    """Jobs, tree, and what cannot fit."""
    from mpiflux.overlay.plan import draw

    workflow = info.workflow
    lines = [f"{workflow.name}: {plural(workflow.total, 'job')} in {plural(len(workflow.groups), 'group')}", ""]
    rows = [(g.name, f"{g.count:,}", parameters(g), request(g), dependencies(g)) for g in workflow.groups]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(5)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].rjust(widths[1]),
                 *(row[i].ljust(widths[i]) for i in (2, 3, 4) if widths[i])]
        lines.append(("  " + "  ".join(cells)).rstrip())
    lines += ["", f"{hosts(info.nodes)}, {plural(info.ranks, 'rank')}", *draw(info.plan).splitlines()]
    notes = [note for note in info.notes if note not in info.plan.notes]
    lines += [f"note: {note}" for note in notes]
    lines.append("")
    if info.misfits:
        lines += ["cannot run:", *(f"  {text}" for text in info.misfits)]
    else:
        lines.append("every job fits; nothing was started")
    return lines


def parameters(group: JobGroup) -> str:
    """``rho[100] × seed[100]`` of a product, ``rho, seed [2,000]`` of a zip."""
    table = group.params
    if not table.columns:
        return ""
    if table.sampling == "zip":
        return f"{', '.join(table.names)} [{len(table):,}]"
    return " × ".join(f"{name}[{len(column):,}]" for name, column in zip(table.names, table.columns, strict=True))


def request(group: JobGroup) -> str:
    """What each job asks for."""
    from mpiflux.model.resources import size

    r = group.request
    parts = [plural(r.nodes, "node")] if r.nodes else []
    if r.tasks != 1:
        parts.append(plural(r.tasks, "task"))
    parts.append(plural(r.cores, "core") + (" a task" if r.tasks != 1 else ""))
    if r.gpus:
        parts.append(plural(r.gpus, "GPU") + (" a task" if r.tasks != 1 else ""))
    if r.memory:
        parts.append(size(r.memory))
    if r.exclusive:
        parts.append("exclusive")
    parts += [f"{amount} {name}" for name, amount in r.consumables.items()]
    if group.time_limit:
        parts.append(f"at most {duration(group.time_limit)}")
    return ", ".join(parts)


def dependencies(group: JobGroup) -> str:
    words = {"ok": "", "any": " (however it ends)", "not_ok": " (if it fails)", "each": " (one by one)"}
    if not group.after:
        return ""
    return "after " + ", ".join(d.group + words.get(d.kind, f" ({d.kind})") for d in group.after)
