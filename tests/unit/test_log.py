"""The file ``log`` of a run directory."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

from mpiflux.instance.log import Logged, RunLog
from mpiflux.instance.options import RunInfo
from mpiflux.instance.view import View
from mpiflux.model.jobspec import HierarchySpec, JobGroup, LevelSpec, Workflow
from mpiflux.model.resources import NodeResources
from mpiflux.overlay.plan import NodeInfo, make_plan
from mpiflux.store.jobtable import Counts

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (.+)\n")


class Heard:
    """An observer that only listens."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


def info(**more: Any) -> RunInfo:
    nodes = [NodeInfo(index=i, name=f"n{i}", ranks=(i,), owner=(i,) * 4,
                      resources=NodeResources(node=i, cores=(0, 1, 2, 3))) for i in range(2)]
    plan = make_plan(nodes, HierarchySpec(levels=(LevelSpec(by="node"),)))
    workflow = Workflow(name="demo", source="/w/flow.yaml", groups=(JobGroup(number=0, name="a", first_id=1, count=9),))
    return RunInfo(workflow, plan, "r", 2, ("n0", "n1"), 8, 0, **more)


def view(completed: int = 0, **more: Any) -> View:
    return View(Counts(9, 0, 9 - completed, 0, completed, completed, 0, 0, 0), 10.0, 0.0, 8, **more)


def lines(path: Path) -> list[str]:
    found = [STAMP.fullmatch(line) for line in path.read_text().splitlines(keepends=True)]
    assert all(found)
    return [match[1] for match in found if match is not None]


def test_a_line_each_with_the_time_and_all_is_passed_on(tmp_path: Path) -> None:
    heard, log = Heard(), RunLog(str(tmp_path / "log"))
    observer = Logged(heard, log)
    observer.begin(info(notes=("hm",), resumed=4))
    for lost in (0, 2, 2):
        observer.progress(view(lost=lost))
    observer.note("a door\nis shut \udcff")
    for _ in range(2):
        observer.progress(view(lost=2, interrupted=signal.SIGINT))
    observer.error("the disk is full")
    observer.failed(RuntimeError("all is lost"))
    observer.end(view(3, lost=3, interrupted=signal.SIGINT), 130)
    log.close()
    assert heard.calls == ["begin", *["progress"] * 3, "note", *["progress"] * 2, "error", "end"]
    found = lines(tmp_path / "log")
    assert found[0].startswith("start: mpiflux ") and "demo (/w/flow.yaml), 9 jobs in 1 group, 4 of them" in found[0]
    assert found[1] == "machine: n[0-1], 8 cores, 0 GPUs, 2 ranks"
    assert [line.split()[0] for line in found[2:6]] == ["tree:"] * 4
    assert [re.sub(r";.*| with .*", "", line) for line in found[6:]] == [
        "note: hm", "lost: 2 jobs", "note: a door", r"is shut \udcff", "interrupted: by SIGINT",
        "error: the disk is full", "failed: RuntimeError('all is lost')", "lost: 1 job",
        "end: status 130, 3 completed of 9 jobs"]


def test_it_goes_on_where_it_ended_and_needs_no_room(tmp_path: Path) -> None:
    for text in ("one", "two"):
        log = RunLog(str(tmp_path / "log"))
        log.write(text)
        log.close()
    assert lines(tmp_path / "log") == ["one", "two"]
    for path in (tmp_path, tmp_path / "none" / "log", Path("/dev/full")):
        log = RunLog(str(path))
        log.write("lost")
        log.close()
