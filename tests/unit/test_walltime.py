"""The end of the allocation: from the environment, else from squeue, and never from more processes than need be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpiflux.instance.walltime import end_of_allocation, job_end, time_left


@pytest.mark.parametrize("text, seconds", [
    ("17 0:45\n", 45), ("17 9:59", 599), ("17 1:00:00", 3600), ("17 2-03:04:05\n", 183845), ("17 0:00", 0),
    ("17 UNLIMITED\n", 0), ("17 NOT_SET", 0), ("17 INVALID", 0), ("", 0), ("slurm_load_jobs error", 0), ("17 error", 0),
    ("17 1:2:3:4", 0), ("9:59", 0)])
def test_what_squeue_says(text: str, seconds: float) -> None:
    assert time_left(text, "17") == seconds


def test_other_elements_of_an_array_are_not_this_job() -> None:
    assert time_left("18 2:00:00\n17 9:59\n16 1:00\n", "17") == 599
    assert time_left("18 2:00:00\n", "17") == 0


def test_the_user_s_own_filters_do_not_count(squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    (squeue / "answer").write_text('[ "${SQUEUE_STATES-none}" = none ] && echo 17 1:40')
    assert end_of_allocation({"SLURM_JOB_ID": "17"}, 1000.0).time == 1100.0


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that notes how it was called; it is as the file ``answer`` says."""
    program = tmp_path / "squeue"
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n. {tmp_path}/answer\n')
    program.chmod(0o755)
    (tmp_path / "answer").write_text("echo 17 1:40")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def test_squeue_is_asked_for_this_job(squeue: Path) -> None:
    assert end_of_allocation({"SLURM_JOB_ID": "17"}, 1000.0).time == 1100.0
    assert (squeue / "calls").read_text() == "-h -j 17 -t RUNNING -o %A %L\n"
    assert job_end({"SLURM_JOB_ID": "17"}) is not None


@pytest.mark.parametrize("environ, end", [
    ({}, 0.0),
    ({"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": "2000"}, 2000.0),
    ({"SLURM_JOB_ID": "17", "MPIFLUX_END_TIME": "3000"}, 3000.0),
    ({"SLURM_JOB_ID": "17", "MPIFLUX_END_TIME": "0"}, 0.0),
    ({"SLURM_JOB_ID": "17", "MPIFLUX_JOB_ID": "4"}, 0.0),
    ({"SLURM_JOB_ID": "$(date)"}, 0.0)])
def test_it_is_not_asked_where_that_is_known_or_others_ask(squeue: Path, environ: dict[str, str], end: float) -> None:
    assert end_of_allocation(environ, 1000.0).time == end
    assert not (squeue / "calls").exists()


def test_one_rank_asks(squeue: Path) -> None:
    assert end_of_allocation({"SLURM_JOB_ID": "17"}, 1000.0, ask=False).time == 0.0
    assert not (squeue / "calls").exists()


@pytest.mark.parametrize("answer", ["exit 1", "echo 17 1:00; exit 1", "kill -9 $$", "exec sleep 1000"])
def test_a_squeue_that_does_not_answer_leaves_the_end_unknown(squeue: Path, answer: str,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpiflux.instance.walltime.PATIENCE", 0.5)
    (squeue / "answer").write_text(answer)
    assert end_of_allocation({"SLURM_JOB_ID": "17"}, 1000.0) == (0.0, "", ())


def test_no_squeue_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_end({"SLURM_JOB_ID": "17"}) is None
