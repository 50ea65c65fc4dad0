"""Where ranks run that are started without an MPI launcher: ``mpiflux run --hosts a,b:2 --rsh CMD``.

Ranks on this host are started as they are. One on another host is stood for by a process here
(:mod:`mpiflux.node.near`), which reaches it by one remote shell of its own.
"""

from __future__ import annotations

import json
import shlex
import socket
import sys
from collections.abc import Sequence
from typing import NamedTuple

from mpiflux.model import hostlist
from mpiflux.model.pmi import mpich_segments

SSH = "ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15"
"""Asks nobody for a password, and finds out within 45 seconds that a host is gone."""


class Layout(NamedTuple):
    """Which rank runs on which host."""

    hosts: tuple[str, ...]
    """By rank."""
    rsh: tuple[str, ...]
    """The remote shell's words; the host and a command for its shell follow."""
    here: frozenset[str] = frozenset()
    """Names of this host."""

    def nodes(self) -> list[int]:
        """The number of each rank's host, in order of first appearance."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(host, len(numbers)) for host in self.hosts]

    def variables(self, rank: int) -> dict[str, str]:
        """What tells the rank its place on its host."""
        host = self.hosts[rank]
        return {"MPIFLUX_LAUNCH_LOCAL_RANK": str(self.hosts[:rank].count(host)),
                "MPIFLUX_LAUNCH_LOCAL_SIZE": str(self.hosts.count(host))}

    def command(self, rank: int, argv: Sequence[str], kvsname: str) -> list[str]:
        """What to start here for the rank ``argv``."""
        host = self.hosts[rank]
        if host in self.here:
            return list(argv)
        task = {"host": host, "rsh": self.rsh, "segments": mpich_segments(kvsname, len(set(self.hosts)))}
        return [sys.executable, "-m", "mpiflux.node.near", json.dumps(task), *argv]


def layout(text: str, ranks: int | None, rsh: str | None) -> Layout:
    """Read ``--hosts``, ``--ranks`` and ``--rsh``.

    ``a,b:2,n[1-3]`` is one rank on each host, two on b; ``ranks`` are spread evenly over hosts without numbers.
    Raises ValueError with a line for the person.
    """
    counts: dict[str, int] = {}
    numbered = False
    for word in hostlist.decode(text):
        host, colon, digits = word.partition(":")
        if not host or host.startswith("-"):
            raise ValueError(f"{word!r} is no host name")
        if colon and not (digits.isascii() and digits.isdigit() and 0 < int(digits) <= 4096):
            raise ValueError(f"{word!r}: after the colon goes a number of ranks from 1 to 4096")
        numbered = numbered or bool(colon)
        counts[host] = counts.get(host, 0) + int(digits or 1)
    if not counts:
        raise ValueError("no host is named")
    if ranks is not None:
        counts = _spread(list(counts), ranks, numbered)
    return Layout(tuple(host for host, count in counts.items() for _ in range(count)), _words(rsh), _names_here())


def _words(rsh: str | None) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(SSH if rsh is None else rsh))
    except ValueError as error:
        raise ValueError(f"--rsh {rsh!r}: {error}") from error
    if not words:
        raise ValueError("--rsh names no command")
    return words


def _spread(hosts: list[str], ranks: int, numbered: bool) -> dict[str, int]:
    if numbered:
        raise ValueError("give numbers of ranks after the hosts, or --ranks, not both")
    if ranks < len(hosts):
        raise ValueError(f"--ranks {ranks} are fewer than the {len(hosts)} hosts; name fewer hosts")
    each, more = divmod(ranks, len(hosts))
    return {host: each + (number < more) for number, host in enumerate(hosts)}


def _names_here() -> frozenset[str]:
    name = socket.gethostname()
    return frozenset({name, name.partition(".")[0], "localhost"})
