"""After which failures a job is tried again, and how long it waits before."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

TIMEOUT, ANY = "timeout", "any"
MAX_CODE = 255
_SIGNALS = ("HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
            "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
            "WINCH", "IO", "PWR", "SYS")
"""Signals of Linux from 1 on."""
_CODES = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?", re.ASCII)


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """The number of retries is :attr:`mpiflux.model.jobspec.JobGroup.retries`."""

    backoff: float = 0.0
    """Seconds before the first retry; each further one waits ``factor`` times as long, at most ``max`` seconds."""
    factor: float = 2.0
    max: float = 0.0
    """0: no bound."""
    every: bool = True
    """After any failure and any time-out; then ``codes`` and ``timeout`` say nothing."""
    codes: tuple[tuple[int, int], ...] = ()
    """Ranges (low, high) of return codes, both included: −N for signal N."""
    timeout: bool = False

    def wants(self, timed_out: bool, returncode: int) -> bool:
        """Whether a job that ended so is to be tried again."""
        if self.every:
            return True
        return self.timeout if timed_out else any(low <= returncode <= high for low, high in self.codes)

    def delay(self, retry: int) -> float:
        """Seconds to wait before retry number ``retry``, from 1."""
        if not self.backoff:
            return 0.0
        try:
            seconds = self.backoff * self.factor ** (retry - 1)
        except OverflowError:
            seconds = float("inf")
        return min(seconds, self.max or _LONGEST)


_LONGEST = 1e9


def retry_on(words: Iterable[str]) -> Retry:
    """A :class:`Retry` without a back-off for words such as ``3``, ``1-5``, ``SIGKILL``, ``timeout``, ``any``.

    Raises ValueError with a sentence about the first word that is none.
    """
    codes: list[tuple[int, int]] = []
    timeout = every = False
    for word in words:
        numbers = _CODES.fullmatch(word)
        name = word.upper().removeprefix("SIG")
        if word == ANY:
            every = True
        elif word == TIMEOUT:
            timeout = True
        elif numbers:
            low, high = int(numbers[1]), int(numbers[2] or numbers[1])
            if not 0 < low <= high <= MAX_CODE:
                raise ValueError(f"{word}: exit codes are from 1 to {MAX_CODE}, the lower one first")
            codes.append((low, high))
        elif name in _SIGNALS:
            codes.append((-_SIGNALS.index(name) - 1,) * 2)
        else:
            raise ValueError(f"{word!r} is no exit code (3), range of them (1-5), signal (SIGKILL), {TIMEOUT} or {ANY}")
    return Retry(every=every, codes=tuple(codes), timeout=timeout)
