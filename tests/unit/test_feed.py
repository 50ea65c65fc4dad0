"""The feed of events: what it adds to the records."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mpiflux.instance.broker_feed import FINAL, RECORD, Feed, Selection
from mpiflux.model.jobspec import JobGroup
from mpiflux.model.messages import Chunk
from mpiflux.model.records import FLAG_STREAMED, PACK
from mpiflux.model.states import Result
from mpiflux.store.jobtable import JobTable

_pieces = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 1000)), max_size=20)
_rest = st.tuples(st.integers(0, 9), st.integers(0, 9))


def _outputs(feed: Feed) -> dict[int, tuple[int, int]]:
    told, _ = feed.read(0, Selection(every=True), ("output",), 1 << 20)
    return {job: (context["stdout"], context["stderr"]) for _, job, _, _, context in told}


@given(_pieces, st.lists(_rest, min_size=3, max_size=3), st.booleans())
def test_an_output_event_counts_what_was_sent_before(pieces: list[tuple[int, int, int]], rest: list[tuple[int, int]],
                                                     lost: bool) -> None:
    """``lost``: of an attempt before that never told its end."""
    feed = Feed()
    if lost:
        for job in (1, 2, 3):
            feed.output(job, 1, 1, 5000)
    sent = {(job, stream): 0 for job in (1, 2, 3) for stream in (1, 2)}
    for job, stream, size in pieces:
        sent[job, stream] += size
        feed.output(job, 2, stream, sent[job, stream])
    packed, expected = b"", {}
    for job, (out, err) in enumerate(rest, 1):
        streamed = bool(sent[job, 1] or sent[job, 2])
        packed += PACK.pack(job, 2, Result.COMPLETED, FLAG_STREAMED * streamed, 0, 1, 0, 0, 1.0, 1.0, 2.0, 0.0, 0.0, 0,
                            out, err, 9)
        if streamed or out or err:
            expected[job] = sent[job, 1] + out, sent[job, 2] + err
    feed.records(np.frombuffer(packed, RECORD), np.full(3, FINAL, "u1"), {})
    assert _outputs(feed) == expected


def test_of_what_ended_all_is_told_that_the_table_believed() -> None:
    """A batch as it may come: a retry, a job whose start was told, one that is said twice, one that nobody knows."""
    table, feed = JobTable(), Feed()
    table.add_group(JobGroup(number=0, name="g", first_id=1, count=4, retries=1))
    table.assign(Chunk(0, 0, 4), 0)
    table.started(_ends((3, Result.NONE)))
    for batch in (_ends((1, Result.COMPLETED), (2, Result.FAILED), (3, Result.FAILED), (3, Result.COMPLETED),
                        (9, Result.COMPLETED)), _ends((4, Result.COMPLETED)), _ends((1, Result.COMPLETED))):
        feed.ended(batch, table.apply(batch, 0), {})
    told, _ = feed.read(0, Selection(every=True), (), 1 << 20)
    events: dict[int, list[str]] = {}
    for _, job, name, _, _ in told:
        events.setdefault(job, []).append(name)
    whole = ["alloc", "start", "finish", "release"]
    assert events == {1: [*whole, "clean"], 2: [*whole, "retry"], 3: [*whole[2:], "retry"],
                      4: [*whole, "clean"]}


def _ends(*items: tuple[int, Result]) -> Any:
    return np.frombuffer(b"".join(PACK.pack(job, 1, result, 0, 0, 1, 0, 0, 1.0, 1.0, 2.0, 0.0, 0.0, 0, 0, 0, 9)
                                  for job, result in items), RECORD)
