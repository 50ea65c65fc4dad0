"""A run seen through its directory: what is committed there, while it goes on and after.

What has to reach a live instance (submit a job, set a key, publish a message) raises :class:`NotConnected`: all that
is in the classes of a live one and not in these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from mpiflux.client.errors import NoJob, NotConnected
from mpiflux.client.records import Record
from mpiflux.model.states import Result, State
from mpiflux.store.eventlog import Event
from mpiflux.store.reader import RunError, RunReader, open_run


def open_directory(path: str, why: str = "") -> Flux:
    """The run in this directory. ``why`` there is no live instance to talk to. Raises NotConnected."""
    try:
        return Flux(open_run(path), why)
    except RunError as error:
        raise NotConnected(str(error)) from None


@dataclass(frozen=True)
class Job(Record):
    """A job record, and what the run directory has of its output and events."""

    _reader: RunReader = field(repr=False, compare=False, kw_only=True)
    _output: tuple[str, str] | None = field(repr=False, compare=False, default=None)

    @property
    def stdout(self) -> str:
        """What it wrote to standard output; bytes that are not UTF-8 as surrogateescape shows them."""
        return self._output[0] if self._output else self._stream(1)

    @property
    def stderr(self) -> str:
        """The same of standard error."""
        return self._output[1] if self._output else self._stream(2)

    def __getattr__(self, name: str) -> NoReturn:
        from mpiflux.client.jobs import Job as Live

        _not_here(self, Live, name, f"{name} of a job", "")

    def events(self) -> Iterator[Event]:
        """What has happened to it so far, in order; each has ``name``, ``timestamp`` and ``context``."""
        yield from self._reader.eventlog(self.id)

    def _stream(self, number: int) -> str:
        return self._reader.output(self.id, number).decode("utf-8", "surrogateescape")


class Kvs:
    """The keys of a run."""

    def __init__(self, reader: RunReader, why: str) -> None:
        self._reader, self._why = reader, why

    def __getattr__(self, name: str) -> NoReturn:
        from mpiflux.client.keys import Kvs as Live

        _not_here(self, Live, name, f"kvs.{name}", self._why)

    def get(self, key: str) -> Any:
        """A value: what JSON can hold, or bytes. Raises KeyError."""
        from mpiflux.store.kvs import KvsError

        try:
            return self._reader.kvs_get(key)
        except KvsError as error:
            raise KeyError(str(error)) from None

    def ls(self, prefix: str = "", *, recursive: bool = False) -> list[str]:
        """The keys below ``prefix``; directories end in a dot. Raises KeyError."""
        from mpiflux.store.kvs import KvsError

        try:
            return self._reader.kvs_ls(prefix, recursive=recursive)
        except KvsError as error:
            raise KeyError(str(error)) from None


class Flux:
    """A run directory; see :func:`mpiflux.connect`."""

    def __init__(self, reader: RunReader, why: str = "") -> None:
        self._reader, self._why = reader, why
        self.kvs = Kvs(reader, why)

    def __getattr__(self, name: str) -> NoReturn:
        from mpiflux.client.live import Flux as Live

        _not_here(self, Live, name, name, self._why)

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Flux:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def run_dir(self) -> str:
        """The run directory."""
        return str(self._reader.directory)

    @property
    def why(self) -> str:
        """Why there is no live instance to talk to."""
        if self.state == "running":
            return self._why or "there is none on this node"
        return "the run has ended" + ("" if self.state == "finished" else "; `mpiflux run --resume` goes on with it")

    @property
    def state(self) -> str:
        """``running``, ``finished``, or ``interrupted`` (it can be resumed)."""
        return self._reader.state

    def jobs(self, name: str | None = None, *, states: Collection[str] | None = None,
             results: Collection[str] | None = None, with_output: bool = False) -> Iterator[Job]:
        """Jobs in order of id, as they are now: of all called ``name``, in one of ``states``, with one of ``results``.

        ``with_output`` reads stdout and stderr along, which is much faster than job by job. Raises NoJob for an
        unknown name, ValueError for an unknown state or result.
        """
        state_codes = None if states is None else [State(_code(State, word)) for word in states]
        result_codes = None if results is None else [Result(_code(Result, word)) for word in results]
        self._reader.refresh()
        if name is not None and name not in self._reader.named:
            known = ", ".join(self._reader.named)
            raise NoJob(f"no jobs are called {name!r}; there are: {known or 'none'}")
        return self._each(name, state_codes, result_codes, with_output)

    def _each(self, name: str | None, states: list[State] | None, results: list[Result] | None,
              with_output: bool) -> Iterator[Job]:
        for record in self._reader.jobs(name, states, results, with_output):
            yield self._job(record)

    def job(self, id: int | str, *, with_output: bool = False) -> Job:
        """One job as it is now: by its id, or as ``"sim.3"`` or ``"sim[3]"``. Raises NoJob."""
        try:
            return self._job(self._reader.job(self._reader.one(id), with_output=with_output))
        except RunError as error:
            raise NoJob(str(error)) from None

    def _job(self, record: dict[str, Any]) -> Job:
        output = (record.pop("stdout"), record.pop("stderr")) if "stdout" in record else None
        return Job(**record, _reader=self._reader, _output=output)


def _code(kind: type[State] | type[Result], word: str) -> int:
    try:
        return int(kind[word.upper()])
    except KeyError:
        raise ValueError(f"{word!r} is no {kind.__name__.lower()}; there are: "
                         f"{', '.join(member.name for member in kind)}") from None


def _not_here(of: object, live: type, name: str, what: str, why: str) -> NoReturn:
    """Raises NotConnected for what the class ``live`` of a live instance has, AttributeError for the rest."""
    if not hasattr(live, name):
        raise AttributeError(f"{type(of).__name__!r} object has no attribute {name!r}")
    raise NotConnected(f"{what} needs the live instance, and this is a run directory only"
                       f"{f': {why}' if why else ''}; jobs and kvs.get read what it holds")
