"""Who has come to MPI, by tables of connections as Linux prints them."""

from __future__ import annotations

import pytest

from mpiflux.model import pmixlooks
from mpiflux.model.pmixlooks import Looks

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
PORT = 0xE6C1


def row(local: int, remote: int, state: str, host: str = "0100007F") -> str:
    return f"   0: {host}:{local:04X} {host}:{remote:04X} {state} 00000000:00000000 00:00000000 00000000 0 0 1 1\n"


LISTENS = row(PORT, 0, "0A") + row(PORT + 1, 0, "0A") + row(40000, PORT + 1, "01")


def connected(port: int) -> str:
    """Both ends."""
    return row(port, PORT, "01") + row(PORT, port, "01")


@pytest.mark.parametrize(("said", "port"), [
    ("begun\nserver prterun-vm-31169@0.0;tcp4://127.0.0.1:59073\n0 1\n", 59073),
    ("server 4040622080.0;tcp4://127.0.0.1:59073\n", 59073), ("server a@0.0;tcp6://[::1]:59073\n", 59073),
    ("server a.0;usock:/tmp/x\n", 0), ("server \n", 0), ("", 0), ("server", 0), ("server tcp4://1:x", 0),
])
def test_the_server_that_tasks_have(said: str, port: int) -> None:
    assert pmixlooks.server_port(said) == port


def test_clients_are_known_by_their_ports_whichever_end_is_listed() -> None:
    table = HEAD + LISTENS + connected(50001) + row(50002, PORT, "06") + row(PORT, 50003, "08") + row(50003, PORT, "05")
    assert pmixlooks.clients(table, PORT) == ({50001}, {50002, 50003})
    assert pmixlooks.clients(table + row(50001, PORT, "04"), PORT) == (set(), {50001, 50002, 50003})
    assert pmixlooks.clients(HEAD + row(50004, PORT, "01", "0" * 24 + "01000000"), PORT) == ({50004}, set())
    assert pmixlooks.clients("", PORT) == pmixlooks.clients(HEAD + "\nx\n", PORT) == (set(), set())


def looks(*ended: int) -> Looks:
    made = Looks()
    made.port, made.ended = PORT, list(ended)
    return made


def test_who_waits_for_one_that_never_came() -> None:
    one = looks(1)
    tables = [HEAD + LISTENS + connected(50001), HEAD]
    assert not one.look(tables, 100.0) and not one.look(tables, 104.9)
    assert one.look(tables, 105.0) and one.anybody


@pytest.mark.parametrize(("ended", "rows"), [
    ((), connected(50001)),  # nobody has ended
    ((1,), ""),  # nobody waits
    ((1,), connected(50001) + row(50002, PORT, "06")),  # it had come
    ((1, 2), connected(50001) + row(50002, PORT, "06") + row(50003, PORT, "06"))])
def test_who_waits_for_nobody(ended: tuple[int, ...], rows: str) -> None:
    one = looks(*ended)
    assert not any(one.look([HEAD + LISTENS + rows], now) for now in (1.0, 100.0, 200.0))


def test_connections_are_remembered_when_the_kernel_forgets_them() -> None:
    one = looks(1)
    one.look([HEAD + connected(50001) + row(50002, PORT, "06")], 1.0)
    assert not any(one.look([HEAD + connected(50001)], now) for now in (90.0, 200.0))
    gone = looks()
    gone.look([HEAD + connected(50001)], 1.0)
    gone.look([HEAD], 100.0)
    assert gone.anybody and not looks().anybody


def test_the_patience_begins_anew_when_nobody_waits() -> None:
    one = looks(1)
    for now, rows in ((1.0, connected(50001)), (4.0, ""), (5.0, connected(50001)), (9.0, connected(50001))):
        assert not one.look([HEAD + rows], now)
    assert one.look([HEAD], 20.0) is False
