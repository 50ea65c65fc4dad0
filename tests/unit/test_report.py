"""What a run came to: the numbers, the page, the live view."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mpiflux.cli import main
from mpiflux.cli.top import screen
from mpiflux.model.records import FIELDS
from mpiflux.report.digest import busy, digest
from mpiflux.report.page import page, seconds
from mpiflux.store.reader import open_run
from tests.support import rundir

RECORD = np.dtype(list(FIELDS))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(rundir.finished(tmp_path_factory.mktemp("run") / "done"))


def test_numbers_are_those_of_the_records(done: str) -> None:
    with open_run(done) as reader:
        found = digest(reader, done)
        jobs = list(reader.jobs())
    assert found.total == len(jobs)
    for result in ("completed", "failed", "canceled", "timeout"):
        assert found.ended(result) == sum(job["result"] == result.upper() for job in jobs)
    assert found.ended("not done") == sum(job["state"] != "INACTIVE" for job in jobs)
    sims = [job for job in jobs if job["name"] == "sim" and job["t_start"]]
    sim = next(group for group in found.groups if group.name == "sim")
    assert sim.ran[2] == pytest.approx(max(job["t_finish"] - job["t_start"] for job in sims), abs=1e-6)
    assert sim.waited[1] == pytest.approx(max(job["t_start"] - job["t_submit"] for job in sims), abs=1e-6)
    assert sim.maxrss == max(job["maxrss"] for job in sims)
    late = next(group for group in found.groups if group.name == "late")
    assert all(map(math.isnan, (*late.waited, *late.ran)))
    assert [job["id"] for job in found.failures] == [
        job["id"] for job in jobs if job["result"] in ("FAILED", "TIMEOUT")]


def test_cores_busy_are_the_records_core_seconds(done: str) -> None:
    with open_run(done) as reader:
        found = digest(reader, done)
        cores, _ = reader.widths()
        records = reader.records
    area = float((found.curves["cores busy"] * np.diff(found.edges)).sum())
    ran = records["t_start"] > 0
    assert area == pytest.approx(float((cores * (records["t_finish"] - records["t_start"]))[ran].sum()))
    assert cores.max() > 1


def test_a_curve_by_hand() -> None:
    records = np.zeros(2, RECORD)
    records["t_start"], records["t_finish"] = [10.0, 12.0], [13.0, 14.0]
    mean = busy(records, np.array([2, 3]), 10.0, np.array([0.0, 1.0, 2.5, 4.0]))
    assert mean.tolist() == pytest.approx([2.0, (1.5 * 2 + 0.5 * 3) / 1.5, (0.5 * 2 + 1.5 * 3) / 1.5])


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.depth = 0

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.depth += tag in ("table", "tr", "td")

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag in ("table", "tr", "td")


def test_the_page_says_all_of_it_and_nothing_of_a_job_is_markup(done: str) -> None:
    with open_run(done) as reader:
        found = digest(reader, done)
    found.failures[0]["stderr"] = "<script>alert(1)</script>\udcff"
    text = page(found, None)
    assert "<script" not in text and "Matplotlib is not installed" in text
    read = Cells()
    read.feed(text)
    assert read.depth == 0
    everything = " ".join(read.texts)
    for words in ("sim", "train", "late", "not done", "<script>alert(1)</script>", "signal 11", "exit status 3"):
        assert words in everything, words
    assert seconds(float("nan")) == "-" and seconds(0.0015) == "1.5 ms" and seconds(5400) == "1.5 h"


def test_the_command_writes_page_and_picture(
        done: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["report", done, "--output", "r.html"]) == 0
    told = capfd.readouterr().err
    assert "r.html" in told and (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    if "Matplotlib" in told:
        assert not (tmp_path / "r.png").exists()
    else:
        assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert main.main(["report", done, "--output", "no/where.html"]) == 1
    assert capfd.readouterr().err.count("\n") == 1
    assert main.main(["report", str(tmp_path)]) != 0


def test_top_looks_at_what_runs(done: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main.main(["top", done]) == 0
    out = capfd.readouterr().out
    assert "10 jobs: 3 completed, 2 failed, 1 timed out, 1 canceled, 3 waiting for others" in out
    with rundir.live(tmp_path / "live"), open_run(str(tmp_path / "live")) as reader:
        lines = list(screen(reader, 1000.0, 1, 12.5))
        running = len(reader.running)
    assert "12.5 jobs/s" in lines[1] and running and lines[3].split()[:2] == ["JOB", "RUNS"]
    assert len(lines) == 5 + (running > 1)
