"""How often a rank looks at MPI: seldom where it is rung, soon where it was rung for something that has not come."""

from __future__ import annotations

from typing import Any

import pytest

from mpiflux.instance.bell import Bell
from mpiflux.instance.rank import OWED_LOOKS, RUNG, SENDING, Rank
from mpiflux.model import messages as m
from mpiflux.overlay import address


class Mail:
    """A transport of two ranks, and the ``epoll`` and clock of one of them: waiting takes no time."""

    rank, size = 0, 2

    def __init__(self, bell: Bell) -> None:
        self.now, self.bell = 100.0, bell
        self.batches: list[bytes] = []
        self.waits: list[float] = []
        self.rung = False

    def poll(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            found, self.batches = self.batches, []
            return found
        self.waits.append(timeout)
        rung, self.rung = self.rung, False
        self.now += 0.0 if rung else timeout
        return [(self.bell.fileno(), 1)] if rung else []

    def moving(self) -> bool:
        return False

    def idle(self) -> bool:
        return True

    def clock(self) -> float:
        return self.now


@pytest.fixture
def rank(tmp_path: Any) -> Any:
    bell, other = Bell(str(tmp_path), 0, {1}, {1}), Bell(str(tmp_path), 1, {0}, {0})
    mail = Mail(bell)
    made = Rank(mail, {}, lambda endpoint: 0, mail.clock, bell)  # type: ignore[arg-type]
    made._epoll.close()
    made._epoll = mail  # type: ignore[assignment]
    mail.rung = True
    made.turn()  # the other's greeting: everybody rings
    yield made, mail, other
    other.close()
    bell.close()
    made._signals_in.close()
    made._signals_out.close()


def ring(mail: Mail, other: Bell, *batches: bytes) -> None:
    other.ring(0)
    mail.rung = True
    mail.batches += batches


def test_who_has_what_it_was_rung_for_looks_seldom(rank: Any) -> None:
    made, mail, other = rank
    batch = m.encode([(address.control(0), address.control(1), m.Alive())])
    for _ in range(5):
        ring(mail, other, batch)
        made.turn()
        mail.waits.clear()
        made.turn()
        assert mail.waits == [RUNG.shortest]
    for _ in range(200):
        made.turn()
    assert mail.waits[-1] == RUNG.quiet


def test_who_was_rung_for_what_has_not_come_looks_soon_and_gives_up(rank: Any) -> None:
    made, mail, other = rank
    ring(mail, other)
    made.turn()
    mail.waits.clear()
    for _ in range(8):
        made.turn()
    looks = 1 + OWED_LOOKS.bit_length() - 1
    assert mail.waits[:looks] == [SENDING * 2 ** k for k in range(looks)]
    assert min(mail.waits[looks:]) >= RUNG.shortest
    # what comes all the same, later, is no credit for the next ring
    mail.batches.append(m.encode([(address.control(0), address.control(1), m.Alive())]))
    made.turn()
    made.turn()
    ring(mail, other)
    made.turn()
    mail.waits.clear()
    made.turn()
    assert mail.waits == [SENDING]
