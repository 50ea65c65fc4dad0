"""What our parent wants of our children's resources: asked of each child, and lent on when all have freed it."""

from __future__ import annotations

from collections.abc import Mapping

from mpiflux.model import messages as m
from mpiflux.sched.handed import Action


class _Sublet:
    """One place that our parent waits for."""

    __slots__ = ("idle", "missing", "token")

    def __init__(self, token: int, missing: int) -> None:
        self.token, self.missing = token, missing
        self.idle = 0.0


class Sublets:
    """What children are freeing for our parent."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._by_token: dict[int, _Sublet] = {}
        """By the token of each child's part."""
        self._next_token = 0

    def __contains__(self, token: int) -> bool:
        """Whether a part of that token is for the parent."""
        return token in self._by_token

    def lend(self, token: int, parts: Mapping[int, tuple[m.NodeShare, ...]]) -> list[Action]:
        """The parent wants ``parts``, by child, as what it calls ``token``: what the children are told."""
        sublet = _Sublet(token, len(parts))
        out: list[Action] = []
        for child, shares in parts.items():
            # never a token of the borrower's, which count up from its scheduler's number
            self._next_token -= 1
            self._by_token[self._next_token] = sublet
            out.append((child, m.Borrow(self._next_token, shares)))
        return out

    def lent(self, message: m.Lend) -> list[Action]:
        """A child has freed its part: what the parent is told."""
        sublet = self._by_token.pop(message.token)
        sublet.missing -= 1
        sublet.idle += message.idle
        return [] if sublet.missing else [(self._parent, m.Lend(sublet.token, sublet.idle))]
