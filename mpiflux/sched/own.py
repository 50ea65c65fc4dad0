"""What users bring along, policies and distributions: whose mistake it was, and where in their file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpiflux.model.messages import Chunk

if TYPE_CHECKING:
    from mpiflux.sched.policies import Machine, Policy
    from mpiflux.sched.queue import Entry

_OURS = "mpiflux"


class Mistake(Exception):
    """A user's class did what it must not; the text names the class, what was wrong and the line."""


def is_own(thing: object) -> bool:
    """Whether it is of a user's class."""
    return type(thing).__module__.partition(".")[0] != _OURS


def blame(what: str, thing: object, error: Exception) -> Mistake:
    """The mistake that ``thing``, of a user's class, made; ``what`` it is."""
    return error if isinstance(error, Mistake) else Mistake(f"{what} {name_of(thing)} failed: {told(error)}")


def told(error: Exception) -> str:
    """An exception, and the last line of somebody else's file that led to it."""
    ours = __file__.rpartition("/sched/")[0] + "/"
    place, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith(ours):
            place = f", at {code.co_filename}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{place}"


def name_of(thing: object) -> str:
    """As a workflow file names it."""
    return f"{type(thing).__module__}:{type(thing).__qualname__}"


class Counted:
    """What is below a scheduler, as a user's policy sees it: it counts what is started."""

    def __init__(self, below: Machine) -> None:
        self._below = below
        self.started = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    def start(self, entry: Entry) -> int:
        n = self._below.start(entry)
        self.started += n
        return n

    @property
    def start_reserved(self) -> Any:
        inner = self._below.start_reserved  # type: ignore[attr-defined]  # asked for only where there is one

        def start_reserved(entry: Entry, reservation: Any) -> int:
            n: int = inner(entry, reservation)
            self.started += n
            return n

        return start_reserved


def check_taken(policy: Policy, taken: int, started: int) -> None:
    """Raises Mistake unless a policy took from the queue what it started: else jobs would be lost, or run twice."""
    if taken != started:
        raise Mistake(f"policy {name_of(policy)} took {taken} jobs from the queue and started {started}: "
                      "queue.take(entry, n) must follow machine.start(entry), with the number that that gave")


def check_split(distribution: object, chunk: Chunk, given: list[tuple[Any, Chunk]], children: list[Any]) -> None:
    """Raises Mistake unless ``given`` is a prefix of ``chunk``, each job once, dealt to some of ``children``."""
    name = f"distribution {name_of(distribution)}"
    n = sum(len(part) for _, part in given)
    jobs = range(chunk.start, chunk.stop, chunk.step)
    if n > len(jobs):
        raise Mistake(f"{name} dealt {n} jobs of {len(jobs)}: each job must be in one of the chunks that split returns")
    seen = bytearray(n)
    for child, part in given:
        if not any(child is one for one in children):
            raise Mistake(f"{name} dealt to {child!r}, which is none of the children that it was given")
        first, last = part.start, part.start + (len(part) - 1) * part.step
        if not len(part):
            continue
        if (part.group, part.attempt) != (chunk.group, chunk.attempt) or first not in jobs[:n] or last not in jobs[:n] \
                or part.step % chunk.step:
            raise Mistake(f"{name} dealt {part}, which is not of the first {n} jobs of {chunk}: the chunks that split "
                          "returns must together be a prefix of the one that it was given")
        places = slice(jobs.index(first), jobs.index(last) + 1, part.step // chunk.step)
        if any(seen[places]):
            raise Mistake(f"{name} dealt jobs of {part} twice")
        seen[places] = b"\1" * len(part)
