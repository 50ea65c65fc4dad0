"""What a person sees of a run while it goes: header, progress, notes on stderr; the summary on stdout."""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from mpiflux.cli.console import Gone, Unwritable, coarse, near, plural, rate, say, shorten, signal_name, tell
from mpiflux.instance.options import RunInfo, RunOptions

if TYPE_CHECKING:
    from mpiflux.instance.view import View

_PLACE = re.compile(r"[^ ].*?:\d+:\d+: ")
SHORT_WINDOW, LONG_WINDOW, ENOUGH = 5.0, 60.0, 10
"""Seconds over which jobs/s are taken: the short ones where so many jobs ended in them."""
FIRST_LINE, LINE_EVERY, LINE_AT_LEAST = 2.0, 3.0, 10.0
"""Plain lines: seconds to the first, between two when something changed, and at most between two."""


class Printer:
    """Implements :class:`mpiflux.instance.options.RunObserver`. Whatever becomes of its streams, the run goes on."""

    def __init__(self, options: RunOptions, progress: str = "auto") -> None:
        if progress == "auto":
            terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
            progress = "bar" if terminal else "plain"
        self.options, self.style = options, progress
        self.info: RunInfo | None = None
        self.speed = Speed()
        self.unwritten = False
        """What it had to say on stdout could not be written."""
        self._meter: Meter = Silent()
        self._interrupted = 0

    def begin(self, info: RunInfo) -> None:
        self.info = info
        if self.style != "none":
            for line in header(info, self.options):
                tell(line)
        for note in info.notes:
            self.note(note)
        if self.style == "plain":
            self._meter = Lines()
        elif self.style == "bar":
            self._meter = Bar(info.workflow.name)

    def dry_run(self, info: RunInfo) -> None:
        from mpiflux.cli.summary import dry_run

        self._print(dry_run(info))

    def progress(self, view: View) -> None:
        self.speed.saw(view.now, view.counts.inactive)
        if view.interrupted and not self._interrupted:
            self._interrupted = view.interrupted
            if not view.time_is_up:
                self.note(f"{signal_name(view.interrupted)}: no more jobs are started and those that run are ended; "
                          "once more ends them at once")
        self._meter.show(view, self.speed)

    def note(self, text: str) -> None:
        self._meter.say(f"mpiflux: {text}")

    def error(self, text: str) -> None:
        self._meter.close()
        tell("\n".join(line if self._has_place(line) else f"mpiflux: {line}" for line in text.splitlines()))

    def end(self, view: View, status: int) -> None:
        from mpiflux.cli.summary import summary

        self._meter.close()
        if self.info is not None:
            self._print(summary(self.options, self.info, view, status))

    def _has_place(self, line: str) -> bool:
        """``file:line:column: message`` stays as it is: editors and terminals link it."""
        return line.startswith((f"{self.options.workflow}:", "--")) or _PLACE.match(line) is not None

    def _print(self, lines: list[str]) -> None:
        try:
            say("\n".join(lines))
        except Gone:
            pass
        except Unwritable as error:
            self.unwritten = True
            tell(f"mpiflux: {error}")


class Speed:
    """Jobs per second over the last seconds, and the time left at that speed."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._begin: tuple[float, int] | None = None

    def saw(self, now: float, ended: int) -> None:
        self._begin = self._begin or (now, ended)
        self._seen.append((now, ended))
        while self._seen[0][0] < now - LONG_WINDOW:
            self._seen.popleft()

    def _since(self, start: tuple[float, int]) -> float:
        now, ended = self._seen[-1]
        return (ended - start[1]) / (now - start[0]) if now > start[0] else 0.0

    @property
    def per_second(self) -> float:
        """Of the last seconds, or of the last minute where jobs end only now and then."""
        if not self._seen:
            return 0.0
        now, ended = self._seen[-1]
        start = next(seen for seen in self._seen if seen[0] >= now - SHORT_WINDOW)
        return self._since(start if ended - start[1] >= ENOUGH else self._seen[0])

    def left(self, view: View) -> float | None:
        """Seconds to the end at the last minute's speed; where no job ended in it, at that of the whole run. None:
        unknown."""
        if not self._seen or self._begin is None:
            return None
        speed = self._since(self._seen[0]) or self._since(self._begin)
        return (view.counts.total - view.counts.inactive) / speed if speed > 0.0 else None


class Meter(Protocol):
    """One way of showing progress."""

    def show(self, view: View, speed: Speed) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


class Silent:
    def show(self, view: View, speed: Speed) -> None:
        pass

    def say(self, text: str) -> None:
        tell(text)

    def close(self) -> None:
        pass


class Lines(Silent):
    """A line now and then, for logs."""

    def __init__(self) -> None:
        self._last = 0.0
        self._shown: object = None

    def show(self, view: View, speed: Speed) -> None:
        now = view.now - view.t_start
        seen = (view.counts.inactive, view.counts.run)
        pause = now - self._last
        if self._shown is None:
            due = now >= FIRST_LINE
        else:
            due = pause >= LINE_AT_LEAST or (pause >= LINE_EVERY and seen != self._shown)
        if due:
            self._last, self._shown = now, seen
            tell(line(view, speed))


def line(view: View, speed: Speed) -> str:
    c = view.counts
    share = f"{100 * c.inactive // c.total if c.total else 100:3} %"
    parts = [f"[{coarse(int(view.now - view.t_start)):>6}] {share}  {c.inactive:,} of {c.total:,} jobs done",
             f"{c.run:,} running"]
    parts += [f"{n:,} {word}" for n, word in ((c.failed, "failed"), (c.timeout, "timed out"),
                                             (c.canceled, "canceled")) if n]
    parts.append(rate(speed.per_second))
    left = speed.left(view)
    if left is not None and c.inactive < c.total:
        parts.append(f"{coarse(left)} left")
    return ", ".join(parts)


class Bar:
    """A bar on a terminal, by rich. Drawn from here and by no thread of its own."""

    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        class Steady(Console):
            def on_broken_pipe(self) -> None:
                """rich would exit this process."""
                raise BrokenPipeError

        console = Steady(file=sys.stderr, force_terminal=True, highlight=False)
        self._console = console
        columns: list[Any] = [
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None, complete_style="green", finished_style="green"),
            TextColumn("{task.fields[text]}")]
        self._progress = Progress(*columns, console=console, auto_refresh=False, transient=True, expand=True,
                                  redirect_stdout=False, redirect_stderr=False)
        self._task = self._progress.add_task(shorten(name, 20), total=None, text="starting")
        self._alive = True
        self._safely(self._progress.start)
        import atexit

        atexit.register(self.close)

    def _safely(self, what: Any, *args: Any, **options: Any) -> None:
        """A terminal that has gone ends the bar and not the run."""
        try:
            what(*args, **options)
        except OSError:
            self._alive = False

    def show(self, view: View, speed: Speed) -> None:
        if not self._alive:
            return
        c = view.counts
        self._fit()
        self._progress.update(self._task, completed=c.inactive, total=c.total, text=self._text(view, speed))
        self._safely(self._progress.refresh)

    def _fit(self) -> None:
        """Leave room at the right edge: the echo of Ctrl-C must not begin a new line, which nobody would erase."""
        try:
            self._console.width = max(os.get_terminal_size(sys.stderr.fileno()).columns - 5, 20)
        except (OSError, ValueError):
            pass

    def _text(self, view: View, speed: Speed) -> str:
        c = view.counts
        left = speed.left(view)
        parts = [f"{c.inactive:,}/{c.total:,} done", f"[cyan]{c.run:,} running[/]"]
        bad = c.failed + c.timeout
        if bad:
            parts.append(f"[red]{bad:,} failed[/]")
        if c.canceled:
            parts.append(f"[yellow]{c.canceled:,} canceled[/]")
        parts.append(rate(speed.per_second))
        if left is not None and c.inactive < c.total:
            parts.append(f"{coarse(left)} left")
        if self._console.width < 80:
            parts = [parts[0], *parts[2:]]
        return "  ".join(parts)

    def say(self, text: str) -> None:
        if self._alive:
            self._safely(self._console.print, text, markup=False, soft_wrap=True)
        else:
            tell(text)

    def close(self) -> None:
        if self._alive:
            self._safely(self._progress.stop)
        self._alive = False


def header(info: RunInfo, options: RunOptions) -> list[str]:
    """The few lines that a run starts with."""
    from mpiflux import __version__
    from mpiflux.cli.summary import hosts

    workflow = info.workflow
    total = plural(workflow.total, "job") + (f" in {plural(len(workflow.groups), 'group')}"
                                             if len(workflow.groups) > 1 else "")
    if info.resumed:
        total += f", {info.resumed:,} of them done before"
    if options.null_exec:
        total += "; nothing is really started"
    machine = f"{hosts(info.nodes)}, {plural(info.cores, 'core')}"
    if info.gpus:
        machine += f", {plural(info.gpus, 'GPU')}"
    tree = plural(len(info.plan.schedulers), "scheduler")
    if info.plan.depth > 1:
        tree += f", depth {info.plan.depth}"
    tree += f", on {plural(info.ranks, 'rank')}"
    return [f"mpiflux {__version__}  {workflow.name}: {total}", f"  machine  {machine}", f"  tree     {tree}",
            f"  results  {near(info.run_dir)}"]


