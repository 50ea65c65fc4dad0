"""Reports that go up together become one, as rank 0 pays for each, however many schedulers are below it."""

from __future__ import annotations

from collections.abc import Sequence

from mpiflux.model import messages as m

MOST_OUTPUT = 1 << 20
"""Bytes of output from which on a report takes no other in."""

Action = tuple[int, m.Message]


def merged(actions: list[Action], parent: int) -> list[Action]:
    """The actions of one round, with those of their reports to ``parent`` that can be joined made one, at the place of
    the last: news that they build on stays before them."""
    at = [i for i, (dst, message) in enumerate(actions)
          if dst == parent and isinstance(message, m.Report) and not message.returned]
    if len(at) < 2:
        return actions
    reports: list[m.Report] = [actions[i][1] for i in at]  # type: ignore[misc]  # chosen above
    gone, last = set(at), at[-1]
    joined: list[Action] = [(parent, report) for report in _join(reports)]
    return [*(one for i, one in enumerate(actions[:last]) if i not in gone), *joined, *actions[last + 1:]]


def _join(reports: Sequence[m.Report]) -> list[m.Report]:
    batches: list[list[m.Report]] = []
    size, told = 0, set[int]()
    for report in reports:
        # a text is told by job: two attempts of one job have their own reports
        if not batches or size + len(report.output) > MOST_OUTPUT or not told.isdisjoint(report.reasons):
            batches.append([])
            size, told = 0, set()
        batches[-1].append(report)
        size += len(report.output)
        told.update(report.reasons)
    return [batch[0] if len(batch) == 1 else m.Report(
        b"".join(one.records for one in batch), b"".join(one.output for one in batch),
        {job: text for one in batch for job, text in one.reasons.items()}, b"".join(one.started for one in batch))
        for batch in batches]
