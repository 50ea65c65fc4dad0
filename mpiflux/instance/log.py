"""The file ``log`` of a run directory: what happened to the instance, a line each with its time in UTC.

It is for people who ask afterwards. What programs want to know is in the journal, and what became of jobs too; so a
line that cannot be written is left out, and nothing else comes of it.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

from mpiflux import __version__
from mpiflux.instance.options import RunInfo, RunObserver
from mpiflux.model import hostlist
from mpiflux.model.resources import count
from mpiflux.overlay.plan import draw

if TYPE_CHECKING:
    from mpiflux.instance.view import View

NAME = "log"
_TREE = 50
"""Lines of the tree at most: the journal has all of it."""


class RunLog:
    """Appends lines to a file, which need not be writable."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def write(self, text: str) -> None:
        """``text``, each of its lines after the time."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        data = "".join(f"{now} {line}\n" for line in text.splitlines()).encode("utf-8", "backslashreplace")
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.write(self._fd, data)
        except OSError:
            pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Logged:
    """Implements :class:`mpiflux.instance.options.RunObserver`: passes all on, and writes down what counts."""

    def __init__(self, observer: RunObserver, log: RunLog) -> None:
        self._observer, self._log = observer, log
        self._interrupted = 0
        self._lost = 0

    def begin(self, info: RunInfo) -> None:
        write, workflow = self._log.write, info.workflow
        source = f" ({os.path.abspath(workflow.source)})" if workflow.source else ""
        before = f", {info.resumed:,} of them done before" if info.resumed else ""
        write(f"start: mpiflux {__version__}, {workflow.name}{source}, {workflow.total:,} jobs in "
              f"{count(len(workflow.groups), 'group')}{before}; process {os.getpid()} on {socket.gethostname()}")
        write(f"machine: {hostlist.encode(info.nodes)}, {count(info.cores, 'core')}, {count(info.gpus, 'GPU')}, "
              f"{count(info.ranks, 'rank')}")
        tree = [line for line in draw(info.plan).splitlines() if not line.startswith("note: ")]
        for line in tree[:_TREE]:
            write(f"tree: {line}")
        if len(tree) > _TREE:
            write(f"tree: … {len(tree) - _TREE} lines more")
        for note in info.notes:
            write(f"note: {note}")
        self._observer.begin(info)

    def dry_run(self, info: RunInfo) -> None:
        self._observer.dry_run(info)

    def progress(self, view: View) -> None:
        self._look(view)
        self._observer.progress(view)

    def _look(self, view: View) -> None:
        if view.lost > self._lost:
            self._log.write(f"lost: {count(view.lost - self._lost, 'job')} with whoever ran them; to run again")
            self._lost = view.lost
        if view.interrupted and not self._interrupted:
            self._interrupted = view.interrupted
            self._log.write(f"interrupted: by {signal.Signals(view.interrupted).name}; no more jobs are started and "
                            "those that run are ended")

    def note(self, text: str) -> None:
        self._log.write(f"note: {text}")
        self._observer.note(text)

    def error(self, text: str) -> None:
        self._log.write(f"error: {text}")
        self._observer.error(text)

    def trouble(self, text: str) -> None:
        """A mistake of ours that the instance has survived; nobody is shown its traceback."""
        self._log.write(f"error: {text}")

    def failed(self, error: BaseException) -> None:
        """The instance itself failed. Whoever started it is told elsewhere."""
        self._log.write(f"failed: {error!r}")

    def end(self, view: View, status: int) -> None:
        self._look(view)
        c = view.counts
        ended = {"completed": c.completed, "failed": c.failed, "timed out": c.timeout, "cancelled": c.canceled}
        parts = [f"{number:,} {word}" for word, number in ended.items() if number]
        self._log.write(f"end: status {status}, {', '.join(parts) or 'none ended'} of {count(c.total, 'job')}")
        self._observer.end(view, status)
