"""Jobs of Open MPI as data: what its ``mpirun`` is told, what the daemons of other nodes are told, how to read its end.

``mpirun`` starts a daemon on each other node by a remote shell, of which it wants to know no more than the command:
``plm_ssh_agent`` of PRRTE (Open MPI 5 and later, docs.prrte.org) and ``plm_rsh_agent`` of Open MPI 4. Ours puts the
daemon's command line into a file, and the process that we have on that node becomes the daemon
(:mod:`mpiflux.node.mpirun`). Each task is a line of shell, written by who binds it (:func:`task_line`).

Pure, and light: a process on each node of each such job imports it.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mpiflux.model.pmixlooks import TELL_SERVER

OLDEST = 4
"""First major version that is known to work."""

CHUNK = 1000
"""Characters of a value in PMI's key-value space."""

AGENT = """#!/bin/sh
# a host, then a command for its shell: kept for the process that mpiflux has there
dir=${0%/*} host=$1; shift
printf %s "$*" >"$dir/part.$host" && mv "$dir/part.$host" "$dir/host.$host" && echo "$host" >"$dir/bell"
"""

TASK = '. "$MPIFLUX_TASKS/$OMPI_COMM_WORLD_LOCAL_RANK"'
"""What mpirun starts for each task, by ``/bin/sh -c``."""

BEGUN = "begun"
"""What the first task says in the FIFO."""

START_LIMIT = "OMPI_MCA_orte_startup_timeout"
"""Variable of the job: within how many seconds the daemons of all nodes are to have reached mpirun; 0: no matter. Open
MPI 4 has it for the same, without a limit as the default; 5 has none."""

_OTHER_LAUNCHERS = "^slurm,lsf,pbs,tm,gridengine,loadleveler,alps,flux"


def version(text: str) -> int:
    """Open MPI's major version from what ``mpirun --version`` prints; 0 for another MPI's mpirun."""
    found = re.match(r"\s*(?:mpirun|mpiexec|orterun|prterun) \((?:Open MPI|OpenRTE)\) (\d+)\.", text)
    return int(found[1]) if found else 0


def unsuitable(mpirun: str, text: str) -> str:
    """Why this is no mpirun for ``mpi: pmix``, with what to do; empty when it is one."""
    major = version(text)
    if major >= OLDEST:
        return ""
    said = text.strip().splitlines()[0].strip()[:80] if text.strip() else ""
    what = f"is of Open MPI {major}, and {OLDEST}.1 or later is needed" if major else "is not Open MPI's"
    return (f"mpi: pmix: {mpirun} {what} (--version says {said!r}): put the right one first in the job's PATH, as by "
            "module load openmpi or env: {PATH: ...}; for MPICH and Intel MPI say mpi: pmi1")


def settings(major: int, agent: str, nodes: int) -> dict[str, str]:
    """Environment of mpirun: our agent for remote nodes, and no batch system's own way to start and count them."""
    many = str(max(nodes, 128))
    if major >= 5:
        return {"PRTE_MCA_plm": "ssh", "PRTE_MCA_plm_ssh_agent": f"/bin/sh {agent}",
                "PRTE_MCA_plm_ssh_no_tree_spawn": "1", "PRTE_MCA_plm_ssh_num_concurrent": many,
                "PRTE_MCA_ras": _OTHER_LAUNCHERS, "PRTE_MCA_prte_do_not_resolve": "1"}
    return {"OMPI_MCA_plm": "rsh", "OMPI_MCA_plm_rsh_agent": f"/bin/sh {agent}",
            "OMPI_MCA_plm_rsh_no_tree_spawn": "1", "OMPI_MCA_plm_rsh_num_concurrent": many,
            "OMPI_MCA_ras": _OTHER_LAUNCHERS, "OMPI_MCA_if_base_do_not_resolve": "1"}


AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
           "PRTE_ALLOW_RUN_AS_ROOT": "1", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
"""Without these mpirun refuses to run for uid 0."""

TCP_ONLY = {"OMPI_MCA_btl": "self,tcp", "OMPI_MCA_coll": "^han,sm", "OMPI_MCA_pml": "ob1"}
"""For nodes that share one host and its name: Open MPI takes tasks of one host name for neighbours in memory."""


OVERSUBSCRIBED = {"OMPI_MCA_mpi_yield_when_idle": "1"}
"""For tasks that may have to share cores: they wait by spinning."""


PATIENT = {"OMPI_MCA_mpi_abort_delay": "1"}
"""For jobs on several nodes. Tasks elsewhere notice the death of one by its closed sockets and abort; those that wait
with that are ended by mpirun for the right reason."""


def host_names(first: str, nodes: Sequence[str]) -> list[str]:
    """What mpirun is to call each node. It knows the node that it is on by its host name, ``first``, and takes no other
    for it; so the others have their own names only where no two are the same up to the first dot."""
    names = [first, *nodes[1:]]
    if len({name.partition(".")[0] for name in names}) == len(names):
        return names
    return [first, *(f"mpiflux-node-{part}" for part in range(1, len(nodes)))]


def command(mpirun: str, hosts: Sequence[str], tasks: Sequence[int]) -> list[str]:
    """mpirun's argument vector: tasks fill node after node, and bind themselves."""
    where = ",".join(f"{host}:{count}" for host, count in zip(hosts, tasks, strict=True))
    return [mpirun, "-np", str(sum(tasks)), "--host", where, "--map-by", "slot", "--bind-to", "none",
            "/bin/sh", "-c", TASK]


def quoted(text: bytes) -> bytes:
    """A word of shell."""
    return b"'" + text.replace(b"'", b"'\\''") + b"'"


def is_shells(name: bytes) -> bool:
    """Whether shells can have a variable of this name. Those that are strict drop others on the way to a program, as
    bash's ``BASH_FUNC_module%%``."""
    return _SHELLS.fullmatch(name) is not None


_SHELLS = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")


def task_line(variables: Mapping[bytes, bytes | None], words: Sequence[bytes], ends: bytes, stdin: bytes = b"",
              tells: bool = False, server: bool = False) -> bytes:
    """What becomes a task: its variables (None: it has none of that name), then the program, bound as ``words`` say.

    Its rank is what mpirun says, as is the namespace by which an instance in the job knows whose launcher started it.
    A shell stays, unmoved by the signals of which the program is to hear, and tells in the FIFO ``ends`` of its end:
    of several that mpirun sees within a moment it names any, mostly one that the first has brought down.
    One that ``tells`` says there that it has begun, too: then all daemons have reached mpirun. Where ``server`` says
    so, it tells which PMIx server it has. ``stdin`` is opened
    here, as what mpirun of Open MPI 5 passes on does not end.
    """
    given = [b"trap : TERM INT HUP QUIT USR1 USR2"]
    given += [b"export %b=%b" % (name, quoted(value)) for name, value in variables.items() if value is not None]
    absent = [name for name, value in variables.items() if value is None]
    if absent:
        given.append(b"unset " + b" ".join(absent))
    if tells:
        given.append(b"echo %b 1<>%b" % (BEGUN.encode(), quoted(ends)))
    if server:
        given.append(TELL_SERVER + b" 1<>" + quoted(ends))
    given += [b"export MPIFLUX_TASK_RANK=$OMPI_COMM_WORLD_RANK MPIFLUX_PMIX=$PMIX_NAMESPACE",
              b"exec 3>&2 2>/dev/null",  # the shell has words of its own for signals
              b"(exec " + b" ".join(map(quoted, words)) + b" 2>&3 3>&-" + (stdin and b" <" + quoted(stdin)) + b")",
              b"s=$?",
              b'echo "$OMPI_COMM_WORLD_RANK $s" 1<>' + quoted(ends),
              b"exit $s", b""]
    return b"\n".join(given)


# -- daemons that do not come ------------------------------------------------------------------------------------------


def start_limit(variables: Mapping[str, str]) -> float:
    """Seconds; 0 for none. mpirun itself would wait for ever."""
    try:
        return max(float(variables.get(START_LIMIT, "")), 0.0)
    except ValueError:
        return 60.0


def unreached(nodes: Sequence[str], limit: float, major: int) -> str:
    """Why a job fails whose tasks had not begun by then."""
    others = ", ".join(nodes[1:4]) + (", …" if len(nodes) > 4 else "")
    framework = "PRTE" if major >= 5 else "OMPI"
    return (f"mpirun on {nodes[0]} has not heard of all its daemons ({others}) within {limit:g} s: they reach it by "
            f"TCP; name a network that leads from node to node by {framework}_MCA_oob_tcp_if_include, or give them "
            f"longer by {START_LIMIT}, both in the job's env")


# -- the daemons' command lines, through PMI's key-value space ---------------------------------------------------------


def puts(commands: Sequence[str], apart: bool = False) -> dict[str, str]:
    """Keys and values for the commands of parts 1, 2, …; ``apart``: nodes share a host. They differ in a word or two,
    so that of all but the first only these are told."""
    found = _chunks("mpirun", json.dumps([commands[0].split(" "), apart]))
    first = commands[0].split(" ")
    for part, text in enumerate(commands[1:], 2):
        words = text.split(" ")
        other: object = words
        if len(words) == len(first):
            other = {place: word for place, word in enumerate(words) if word != first[place]}
        found.update(_chunks(f"mpirun.{part}", json.dumps(other)))
    return found


def keys(name: str, chunks: int) -> list[str]:
    """Of the pieces of a long value, whose number is the value of ``name`` itself."""
    return [f"{name}.c{number}" for number in range(chunks)]


def _chunks(name: str, text: str) -> dict[str, str]:
    packed = binascii.b2a_base64(text.encode(), newline=False).decode()
    pieces = [packed[at:at + CHUNK] for at in range(0, len(packed), CHUNK)]
    return {name: str(len(pieces)), **dict(zip(keys(name, len(pieces)), pieces, strict=True))}


def joined(pieces: Sequence[str]) -> object:
    """What the pieces of a value say."""
    return json.loads(binascii.a2b_base64("".join(pieces)))


def daemon(first: Sequence[str], other: object) -> str:
    """A daemon's command from the first one's words and what is its own (None: it is the first). It is to stay our
    child, and so must not go into the background: orted does so when it is told to, prted unless it is told not to."""
    words = list(first)
    if isinstance(other, list):
        words = other
    elif isinstance(other, dict):
        for place, word in other.items():
            words[int(place)] = word
    new = any(word.endswith("/prted") for word in words)
    attached = ["--leave-session-attached" if new and word == "--daemonize" else word for word in words]
    return " ".join(word for word in attached if word != "--daemonize")


def is_old(command: str) -> bool:
    """Whether a daemon's command is Open MPI 4's."""
    return any(word.endswith("orted") for word in command.split())


# -- how it ended ------------------------------------------------------------------------------------------------------

_EXIT = re.compile(r"detected that one or more processes exited with non-zero status.*?"
                   r"Process name:\s*\[.*?,(\d+)\]\s*Exit code:\s*(-?\d+)", re.DOTALL)
_ABORT = re.compile(r"MPI_ABORT was invoked on rank (\d+) in communicator (.*?)\n(?:\s*Proc: \[\[.*?\],(\d+)\])?"
                    r".*?error\s?code:?\s+(-?\d+)", re.DOTALL | re.IGNORECASE)
_LEFT = re.compile(r"has exited due to process rank (\d+) with PID \d+ on\s+node \S+\s+exiting\s+improperly")
_LOST = re.compile(r"has lost communication with a remote daemon|daemon .{0,200}? failed unexpectedly", re.DOTALL)
_BY_OTHERS = (15, 9)
"""Signals that mpirun sends to the other tasks when one has failed."""


Words = Callable[[int], str]
"""How a process ended, in words; it is called with what ``subprocess`` has as its code."""


def code(status: int) -> int:
    """As ``subprocess`` has it, of what a shell says. No signal has a number above 64: −1 of a program is 255."""
    return 128 - status if 128 < status <= 128 + 64 else status


class End(NamedTuple):
    """How a task ended; ``status`` is as a shell has it, 128 + n for signal n."""

    rank: int
    status: int

    @property
    def signal(self) -> int:
        """0: none."""
        return max(-code(self.status), 0)

    @property
    def is_cause(self) -> bool:
        """Whether it may be why the job failed, rather than what mpirun did to the other tasks."""
        return self.status > 0 and self.signal not in _BY_OTHERS


def ends(lines: str) -> list[End]:
    """What tasks have said in the FIFO (:func:`task_line`)."""
    return [End(int(words[0]), int(words[1])) for line in lines.splitlines()
            if len(words := line.split()) == 2 and words[0].isdecimal() and words[1].isdecimal()]


def aborted(said: str) -> End | None:
    """The task that called MPI_Abort, and its code, from what mpirun said; rank −1 where it cannot be told."""
    found = _ABORT.search(said)
    if found is None:
        return None
    world = "MPI_COMM_WORLD" in found[2].upper()
    return End(int(found[3] or found[1]) if found[3] or world else -1, int(found[4]))


def reason(end: End, tasks: Sequence[int], nodes: Sequence[str], words: Words) -> tuple[int, str]:
    """(returncode as ``subprocess`` has it, reason) of a job that failed by a task's end."""
    found = code(end.status)
    return found, f"{task_name(end.rank, tasks, nodes)} {words(found)}"


def ending(said: str, status: int, tasks: Sequence[int], nodes: Sequence[str], words: Words) -> tuple[int, str]:
    """The same for a job whose mpirun ended with ``status``, not 0, after it had ``said`` this at last on stderr.

    Wordings: ``help-orterun.txt`` and ``help-mpi-api.txt`` of Open MPI 4.1, ``help-prterun.txt`` and
    ``help-mpi-api.txt`` of 5.0.
    """
    if (end := aborted(said)) is not None:
        # as a shell would see it; 0 was not well either
        return end.status & 0xFF or 1, f"{task_name(end.rank, tasks, nodes)} aborted with code {end.status}"
    if found := _EXIT.search(said):
        return reason(End(int(found[1]), int(found[2])), tasks, nodes, words)
    if found := _LEFT.search(said):
        return 1, f"{task_name(int(found[1]), tasks, nodes)} ended without MPI_Finalize"
    if _LOST.search(said):
        return status, "Open MPI's daemon on one of its nodes was lost"
    return status, f"mpirun on {nodes[0]} {words(status)}; the job's stderr may say why"


def task_name(rank: int, tasks: Sequence[int], nodes: Sequence[str]) -> str:
    """A task in words, with its node as far as that is known."""
    first = 0
    for node, count in zip(nodes, tasks, strict=True):
        if first <= rank < first + count:
            return f"task {rank} on {node}"
        first += count
    return "a task"
