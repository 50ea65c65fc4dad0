"""``--fail-fast``: the first job that fails for good ends the run, unless a signal turns out to be behind it. Pure."""

from __future__ import annotations

_NEVER = float("inf")


class FailFast:
    """``on``: the run is to fail fast. ``suspicion``: seconds to wait for a batch system's signal before that."""

    def __init__(self, on: bool, suspicion: float) -> None:
        self._armed, self._suspicion = on, suspicion
        self._culprit = 0
        self.next = _NEVER
        """When :meth:`due` is to be asked."""
        self.reason = ""
        """Why nothing is tried again any more."""

    def failed(self, job: int, now: float) -> bool:
        """A job has failed. Whether all others are to be cancelled at once, for :attr:`reason`."""
        if not self._armed:
            return False
        self._armed = False
        self._culprit, self.next = job, now + self._suspicion
        return self.due(now)

    def due(self, now: float) -> bool:
        """Whether the others are to be cancelled now, for :attr:`reason`; said once."""
        if self.next > now:
            return False
        self.next = _NEVER
        self.reason = f"job {self._culprit} failed and the run is to fail fast"
        return True

    def clear(self) -> None:
        """The run ends in another way."""
        self.next = _NEVER
