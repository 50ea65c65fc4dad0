"""Supervisors that do not answer are ended; those that do, and those of a rank that was itself stopped, are not."""

from __future__ import annotations

import pytest

from mpiflux.instance.pulse import LEAST, Pulse


class Fake:
    """Executors that answer as long as they are among ``answering``."""

    def __init__(self, numbers: set[int]) -> None:
        self.numbers, self.answering = numbers, set(numbers)
        self.heard = set(numbers)
        self.replaced: list[int] = []
        self.asked = 0

    def beat(self, src: int, age: float) -> None:
        self.asked += 1
        self.heard |= self.answering

    def pids(self) -> dict[int, int]:
        return dict.fromkeys(self.numbers, 1)

    def replace(self, number: int) -> None:
        self.replaced.append(number)
        self.heard.add(number)


def _until(pulse: Pulse, now: float, end: float) -> tuple[float, list[int]]:
    ended = []
    while now < end:
        now = pulse.next
        ended += pulse.look(now)
    return now, ended


@pytest.mark.parametrize("timeout", [1.0, 60.0])
def test_who_does_not_answer_is_ended_once(timeout: float) -> None:
    fake = Fake({1, 2})
    pulse = Pulse(fake, 9, timeout, 100.0)
    now, ended = _until(pulse, 100.0, 100.0 + 20 * timeout)
    assert not ended and fake.asked >= 100
    fake.answering = {2}
    now, ended = _until(pulse, now, now + 0.9 * max(timeout, LEAST))
    assert not ended
    now, ended = _until(pulse, now, now + 0.5 * max(timeout, LEAST))
    assert ended == fake.replaced == [1]
    fake.answering = {1, 2}
    assert not _until(pulse, now, now + 20 * timeout)[1]


def test_a_rank_that_was_stopped_blames_nobody() -> None:
    fake = Fake({1})
    pulse = Pulse(fake, 9, 6.0, 0.0)
    now, _ = _until(pulse, 0.0, 20.0)
    fake.heard.clear()
    assert pulse.look(now + 1000.0) == []
    assert not _until(pulse, now + 1000.0, now + 1100.0)[1]


def test_who_is_gone_is_not_waited_for() -> None:
    fake = Fake({1, 2})
    pulse = Pulse(fake, 9, 6.0, 0.0)
    now, _ = _until(pulse, 0.0, 10.0)
    fake.numbers, fake.answering = {2}, {2}
    assert not _until(pulse, now, now + 100.0)[1]
