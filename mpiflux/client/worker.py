"""A worker of an executor: ``python -m mpiflux.client.worker QUEUE``, run as a job. Makes calls until it is ended."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from typing import Any

from mpiflux.client import calls, plans
from mpiflux.client.connection import Connection
from mpiflux.client.errors import FluxError
from mpiflux.client.where import locate
from mpiflux.model import requests as r

_LOST = b"the function ended its worker process (killed, out of memory, os._exit); only this call is lost"


class RemoteTraceback(Exception):
    """The cause of an exception that a function raised in a worker: the traceback there, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def work(name: str) -> int:
    """Serve one executor. Returns the exit status."""
    connection = Connection(locate().socket, program="worker")
    connection.ask(r.Ask(f"{name}.alive", b"\xc0"), lambda value, error: os._exit(0))
    here = f"worker job {os.environ.get('MPIFLUX_JOB_ID', '?')} on {os.uname().nodename}"
    try:
        told: tuple[r.Op, ...] = ()
        while True:
            item, value, lost = connection.do(plans.pull_again(name), after=told)
            number, data = calls.unnumbered(value)
            kind, answer = (calls.BROKEN, _LOST) if lost else _call(data, here)
            # the result before the item is done with: between the two, it is rather told twice than not
            told = (r.Publish(f"{name}.done", plans.pack_value(calls.numbered(number, kind, answer))), r.Done(item))
    except FluxError:
        return 0
    finally:
        connection.close()


def _call(data: bytes, here: str) -> tuple[bytes, bytes]:
    try:
        if b"__main__" in data:
            _load_main()
        fn, args, kwargs = pickle.loads(data)
        value = pickle.dumps(fn(*args, **kwargs))
        if len(value) > r.MAX_VALUE - 1024:
            raise ValueError(f"the result takes {len(value)} bytes; at most {r.MAX_VALUE} travel: return a file's name")
        return calls.VALUE, value
    except BaseException as error:
        text = "".join(traceback.format_exception(error)) + f"in {here}\n"
        return calls.ERROR, _pickled(error, text)


def _load_main() -> None:
    """Let what the submitting program itself defines be found: run it under another name, as multiprocessing does."""
    kind, _, main = os.environ.pop(calls.MAIN, "").partition(":")
    if main:
        from multiprocessing import spawn

        os.environ[calls.LOADING] = main
        try:
            spawn.prepare({f"init_main_from_{kind}": main})
        finally:
            del os.environ[calls.LOADING]


def _pickled(error: BaseException, text: str) -> bytes:
    error.__cause__ = RemoteTraceback(text)
    error.__traceback__ = None
    try:
        data = pickle.dumps(_Raised(error, text))
        pickle.loads(data)
        return data
    except BaseException:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error} (an exception that cannot be pickled)"))


class _Raised:
    """Pickles as an exception with its cause, which exceptions alone do not."""

    def __init__(self, error: BaseException, text: str) -> None:
        self._error, self._text = error, text

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (self._error, self._text)


def rebuild(error: BaseException, text: str) -> BaseException:
    """An exception as it was raised in a worker."""
    error.__cause__ = RemoteTraceback(text)
    return error


if __name__ == "__main__":
    # what the functions were pickled under is this module's name, not __main__
    from mpiflux.client.worker import work as work_

    sys.exit(work_(sys.argv[1]))

__all__ = ["RemoteTraceback", "rebuild", "work"]
