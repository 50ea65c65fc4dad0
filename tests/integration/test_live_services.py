"""Services whose handlers do odd things, or whose connection is lost; both interfaces."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

import mpiflux
import mpiflux.aio
from tests.integration.test_live import instance
from tests.support.runs import Place, place, until

__all__ = ["place"]


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def odd(kind: str) -> Any:
    if kind == "surrogate":
        raise ValueError("bad \udcff")
    if kind == "exit":
        sys.exit(3)
    if kind == "silent":
        raise Silent
    if kind == "long":
        raise ValueError("x" * 10_000_000)
    if kind == "unsendable":
        return object()
    if kind == "cancelled":
        raise asyncio.CancelledError
    return kind


ODD = [("surrogate", r"bad \\udcff"), ("exit", "SystemExit: 3"), ("silent", "Silent"), ("long", "xxx"),
       ("unsendable", "TypeError"), ("cancelled", "CancelledError")]


def test_every_exception_of_a_handler_is_an_answer(place: Place) -> None:
    async def odd_too(kind: str) -> Any:
        return odd(kind)

    async def serve(directory: Path) -> None:
        async with await mpiflux.aio.connect(directory) as flux, await flux.serve("aio", odd_too):
            for kind, said in ODD:
                with pytest.raises(mpiflux.RemoteError, match=said):
                    await asyncio.wait_for(flux.call("aio", kind), 30)
            assert await asyncio.wait_for(flux.call("aio", "well"), 30) == "well"

    with instance(place) as (directory, _):
        with mpiflux.connect(directory) as flux, flux.serve("odd", odd):
            for kind, said in ODD:
                with pytest.raises(mpiflux.RemoteError, match=said):
                    flux.call("odd", kind, timeout=30)
            assert flux.call("odd", "well", timeout=30) == "well"
        asyncio.run(serve(directory))


def test_a_service_goes_on_after_a_lost_connection(place: Place) -> None:
    with instance(place) as (directory, _), mpiflux.connect(directory) as server, mpiflux.connect(directory) as flux:
        def answers(value: int) -> bool:
            try:
                return bool(flux.call("half", value, timeout=30) == value // 2)
            except mpiflux.NoService:
                return False

        with server.serve("half", lambda x: x // 2):
            for value in (2, 8):
                assert until(lambda value=value: answers(value), "an answer")
                server._connection._sock.shutdown(socket.SHUT_RDWR)
                server.status()


def test_asyncio_lists_jobs(place: Place) -> None:
    async def steer(directory: Path) -> None:
        async with await mpiflux.aio.connect(directory) as flux:
            await (await flux.submit_many([["true"]] * 3 + [["false"]], name="some")).wait()
            assert [job.id async for job in flux.jobs()] == [1, 2, 3, 4]
            assert [job.id async for job in flux.jobs("some", results={"FAILED"})] == [4]
            async for _ in flux.jobs():
                break
            with pytest.raises(mpiflux.NoJob):
                [job async for job in flux.jobs("none")]

    with instance(place) as (directory, _):
        asyncio.run(steer(directory))
