"""An instance inside a job of another one: what the outer one has given it, and how it makes itself known there.

What a task may use is told by its environment (``MPIFLUX_CORES`` and its like, :mod:`mpiflux.node.launch`), because
CPU affinity alone says nothing of cores and nodes that an outer instance only pretends to have.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from mpiflux.instance.launcher import is_a_task
from mpiflux.model import idset
from mpiflux.model import requests as r
from mpiflux.model.frames import BadFrame, Unpacker, pack
from mpiflux.node.topology.types import Core, Topology
from mpiflux.store import kvs

_LOCAL = "local://"

KEY = "instances"
"""Directory of the outer instance's keys in which inner ones make themselves known, each by its own name."""

PATIENCE = 5.0
"""Seconds that the outer instance has to take notice; after that the inner one goes on without."""

OF_A_TASK = ("MPIFLUX_JOB_ID", "MPIFLUX_JOB_NAME", "MPIFLUX_JOB_INDEX", "MPIFLUX_ATTEMPT", "MPIFLUX_TASK_RANK",
             "MPIFLUX_TASK_COUNT", "MPIFLUX_LOCAL_RANK", "MPIFLUX_CORES", "MPIFLUX_GPUS", "MPIFLUX_NODE",
             "MPIFLUX_NODE_LIST", "MPIFLUX_DECLARED_CORES", "MPIFLUX_MEMORY", "MPIFLUX_PMIX")
"""What an inner instance must not hand on to its own jobs."""


class Grant(NamedTuple):
    """What the job that this process belongs to was given."""

    task: str
    """Tells the tasks of the job apart: processes with the same one share what it was given."""
    cores: int
    declared: int
    """How many of the cores are only pretended: nothing is bound to them."""
    memory: int
    """Bytes; 0 when the job asked for none."""


def grant(environ: Mapping[str, str], launcher: str) -> Grant | None:
    """What a job's task was given; None outside of a job, and for ranks that some other launcher inside the job
    started, as it may have carried one task's variables to other nodes."""
    if not is_a_task(environ, launcher) or "MPIFLUX_CORES" not in environ:
        return None
    try:
        cores = len(idset.decode(environ["MPIFLUX_CORES"]))
    except ValueError:
        return None
    task = f"{environ['MPIFLUX_JOB_ID']}.{environ.get('MPIFLUX_TASK_RANK', '0')}"
    declared = min(_number(environ, "MPIFLUX_DECLARED_CORES"), cores)
    return Grant(task, cores, declared, _number(environ, "MPIFLUX_MEMORY"))


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def apply(topology: Topology, given: Grant) -> Topology:
    """The machine as far as a task may use it. The CPU affinity that the machine was read by says which cores are
    real ones; those that are only pretended are added."""
    real = topology.cores if given.cores > given.declared else ()
    numa = topology.cores[0].numa if topology.cores else 0
    pretended = tuple(Core(len(real) + i, (), numa) for i in range(given.declared))
    memory = min(given.memory, topology.memory) if given.memory else topology.memory
    # what there is to say of this machine the outer instance has said
    return topology._replace(cores=real + pretended, memory=memory, notes=())


def refusal(environ: Mapping[str, str], launcher: str, given: Grant | None) -> str:
    """Why no instance can run in this job, with what mends it; empty when one can."""
    if given is None:
        return ""
    if given.cores == 0:
        return (f"job {environ['MPIFLUX_JOB_ID']} has no cores, and an instance inside it can only use what it was "
                "given: ask for cores, as in resources: {cores: 4}")
    tasks = environ.get("MPIFLUX_TASK_COUNT", "1")
    if launcher == "none" and tasks != "1":
        return (f"job {environ['MPIFLUX_JOB_ID']} has {tasks} tasks that do not know of each other, and each would be "
                "an instance of its own: say mpi: pmi1 in the outer workflow (submit --instance does; with Open MPI "
                "mpi: pmix), or ask for one task with several cores")
    return ""


class Outer:
    """The outer instance, seen from rank 0 of the inner one. Whatever fails here is no reason to stop."""

    def __init__(self, environ: Mapping[str, str], name: str, facts: Mapping[str, Any]) -> None:
        """``name`` tells this instance apart; ``facts`` are what others may want to know of it."""
        from urllib.parse import unquote

        self._socket = unquote(environ["MPIFLUX_URI"][len(_LOCAL):])
        self._key = f"{KEY}.{name}"
        job = _number(environ, "MPIFLUX_JOB_ID")
        self._facts = {"job": job or None, "attempt": _number(environ, "MPIFLUX_ATTEMPT") or None, **facts}

    def tell(self, **facts: Any) -> str:
        """Make this instance known, or what is new of it. Returns why that could not be done, or nothing."""
        self._facts.update(facts, t=time.time())
        ops = msgspec.msgpack.encode((kvs.put(self._key, self._facts),))
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(PATIENCE)
                sock.connect(self._socket)
                sock.sendall(pack(r.encode(r.Hello(r.VERSION, "mpiflux", os.getpid()))))
                sock.sendall(pack(r.encode(r.Call(1, r.Txn(ops)))))
                return _answer(sock)
        except OSError as error:
            return f"the instance around this one does not answer: {error.strerror or error}"
        except (BadFrame, r.BadRequest) as error:
            return f"the instance around this one is not understood: {error}"


def _answer(sock: socket.socket) -> str:
    """Wait for the answer to the only call; what is wrong, or nothing."""
    unpacker = Unpacker()
    while data := sock.recv(1 << 16):
        for frame in unpacker.feed(data):
            message = r.decode_answer(frame)
            if isinstance(message, r.Reply):
                return ""
            if isinstance(message, r.Error):
                return f"the instance around this one refused to take notice: {message.text}"
            if isinstance(message, r.Goodbye):
                return f"the instance around this one: {message.reason}"
    return "the instance around this one has hung up"


def outer(environ: Mapping[str, str], name: str, facts: Mapping[str, Any]) -> Outer | None:
    """The instance around this one; None when there is none that can be talked to."""
    return Outer(environ, name, facts) if environ.get("MPIFLUX_URI", "").startswith(_LOCAL) else None
