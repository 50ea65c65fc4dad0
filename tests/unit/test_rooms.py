"""The rooms of mpiflux: who may import whom, and what decides without looking at the world.

The tables below are the documentation of it; the tests read the imports of every module and hold them to it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "mpiflux"

ARROWS = {
    # room        may import, besides itself
    "__init__":  "client",
    "__main__":  "cli",
    "aio":       "client",
    "kvs":       "store",
    "cli":       "instance client report sim store spec overlay model",
    "instance":  "node overlay store sched spec model",
    "sim":       "sched overlay store spec model",
    "report":    "store model",
    "bridges":   "client",
    "client":    "store model",          # store, to read the directory of a run that is over
    "node":      "model",
    "overlay":   "model",
    "store":     "model",
    "sched":     "model",
    "spec":      "model",
    "model":     "",
}

PURE_ROOMS = "model sched spec store overlay"
"""Their modules decide from arguments alone: time, ids and random numbers come in. Except these:"""

IMPURE_MODULES = {
    # module of a pure room    what it is there for
    "overlay.mpi":             "carries batches between ranks by MPI",
    "spec.files":              "reads the workflow file and the CSV files that it names",
    "spec.moments":            "knows the time zone of the machine",
    "store.journal":           "keeps the table and the KVS in SQLite",
    "store.reader":            "reads a run directory, live or finished",
    "store.database":          "opens the database for reading",
    "store.runlock":           "lets one instance at a time write a run directory",
}

SEEDED_MODULES = {
    # module of a pure room    why it may draw numbers, always from a generator with a seed
    "spec.generators":         "random designs, from the seed in the file",
}

IMPURE_IMPORTS = {
    "MPI":        "mpi4py",
    "network":    "socket socketserver ssl select selectors",
    "clock":      "time datetime sched",
    "randomness": "random secrets uuid numpy.random",
    "processes":  "subprocess signal multiprocessing concurrent threading asyncio",
    "system":     "os pathlib shutil tempfile glob fcntl resource mmap platform pwd ctypes",
    "database":   "sqlite3",
}
IMPURE_CALLS = {"open", "input", "breakpoint"}

PRINTING_ROOMS = {"cli"}
UNPICKLING_ROOMS = {"client"}  # the user's own worker and client open what the user's own client packed
PICKLES = {"pickle", "_pickle", "shelve", "dill", "cloudpickle"}

LEAF_ROOMS = ("model", "sched", "node")
"""What every rank loads: a thousand of them read each module from one shared file system."""
NOT_ON_LEAVES = ("numpy", "asyncio", "yaml", "rich", "sqlite3", "mpi4py", "mpiflux.client")
"""mpi4py too: the supervisor is forked before MPI is there."""


class Module(NamedTuple):
    name: str
    room: str
    tree: ast.Module


def module(name: str, source: str) -> Module:
    """``name`` is dotted, below the package: ``store.kvs``, ``__main__``; a room's own file is ``store``."""
    return Module(name, name.partition(".")[0], ast.parse(source))


def modules() -> Iterator[Module]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        yield module(".".join(parts), path.read_text())


ALL = list(modules())


def imports(mod: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that the module imports, wherever in it: also in functions and for types."""
    package = ["mpiflux", *mod.name.split(".")]
    if (PACKAGE.joinpath(*mod.name.split(".")) / "__init__.py").exists():
        package.append("__init__")
    for node in ast.walk(mod.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[:len(package) - node.level]) if node.level else ""
            base = ".".join(p for p in (base, node.module or "") if p)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def dotted(node: ast.expr) -> str:
    """``a.b.c`` for such an expression, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def is_below(name: str, parents: str) -> bool:
    return any(name == p or name.startswith(p + ".") for p in parents.split())


def wrong_arrows(mod: Module) -> list[str]:
    allowed = {mod.room, *ARROWS.get(mod.room, "").split()}
    found = []
    for line, name in imports(mod):
        if is_below(name, "mpiflux"):
            room = name.split(".")[1] if "." in name else ""
            if room in ARROWS and room not in allowed:
                found.append(f"mpiflux/{mod.name}:{line} imports {name}: {mod.room} may import "
                             f"{ARROWS.get(mod.room) or 'no other room'}")
    return found


def impurities(mod: Module) -> list[str]:
    banned = {name: kind for kind, names in IMPURE_IMPORTS.items() for name in names.split()}
    if mod.name in SEEDED_MODULES:
        del banned["numpy.random"]
    found = [f"mpiflux/{mod.name}:{line} imports {name}: {kind}"
             for line, name in imports(mod) for b, kind in banned.items() if is_below(name, b)]
    for node in ast.walk(mod.tree):
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name in ("np.random", "numpy.random") and "numpy.random" in banned:
                found.append(f"mpiflux/{mod.name}:{node.lineno} uses {name}: randomness")
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in IMPURE_CALLS:
                found.append(f"mpiflux/{mod.name}:{node.lineno} calls {name}(): system")
            if name.endswith((".default_rng", ".PCG64", ".SeedSequence")) and not (node.args or node.keywords):
                found.append(f"mpiflux/{mod.name}:{node.lineno} draws numbers without a seed")
    return found


def printing(mod: Module) -> list[str]:
    return [f"mpiflux/{mod.name}:{node.lineno} prints: only cli does" for node in ast.walk(mod.tree)
            if isinstance(node, ast.Call) and dotted(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")]


def pickling(mod: Module) -> list[str]:
    return [f"mpiflux/{mod.name}:{line} imports {name}: the runtime unpickles nothing"
            for line, name in imports(mod) if name.partition(".")[0] in PICKLES]


def report(problems: list[str]) -> str:
    return "\n  ".join(["", *problems])


# -- the rules on the program ------------------------------------------------------------------------------------


def test_every_room_is_in_the_table() -> None:
    assert {mod.room for mod in ALL} <= set(ARROWS)


def test_the_arrows_make_no_circle() -> None:
    seen: set[str] = set()
    order = list(ARROWS)
    while order:
        free = [room for room in order if set(ARROWS[room].split()) <= seen]
        assert free, f"a circle among {order}"
        seen.update(free)
        order = [room for room in order if room not in seen]


def test_arrows_point_one_way() -> None:
    problems = [text for mod in ALL for text in wrong_arrows(mod)]
    assert not problems, report(problems)


def test_pure_rooms_are_pure() -> None:
    problems = [text for mod in ALL if is_below(mod.room, PURE_ROOMS) and mod.name not in IMPURE_MODULES
                for text in impurities(mod)]
    assert not problems, report(problems)


def test_exceptions_are_still_needed() -> None:
    by_name = {mod.name: mod for mod in ALL}
    idle = [name for name in IMPURE_MODULES if name not in by_name or not impurities(by_name[name])]
    assert not idle, f"take {idle} out of the table"
    assert set(SEEDED_MODULES) <= set(by_name)


def test_only_cli_prints() -> None:
    problems = [text for mod in ALL if mod.room not in PRINTING_ROOMS for text in printing(mod)]
    assert not problems, report(problems)


def test_the_runtime_unpickles_nothing() -> None:
    problems = [text for mod in ALL if mod.room not in UNPICKLING_ROOMS for text in pickling(mod)]
    assert not problems, report(problems)


@pytest.mark.parametrize("room", LEAF_ROOMS)
def test_leaves_load_little(room: str) -> None:
    names = [f"mpiflux.{mod.name}" for mod in ALL if mod.room == room]
    # what the interpreter loads by itself at start is not ours
    code = f"""
import importlib, sys
before = set(sys.modules)
for name in {names!r}:
    importlib.import_module(name)
    for heavy in {NOT_ON_LEAVES!r}:
        if heavy in sys.modules and heavy not in before:
            print(name, "loads", heavy)
            before.add(heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


# -- the rules bite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "source"), [
    ("sched.fcfs", "from mpiflux.instance import loop"),
    ("sched.fcfs", "def f():\n    import mpiflux.node.topology"),
    ("sched.policies.easy", "from ...overlay.plan import Plan"),
    ("sched.policies", "from ...overlay import plan"),
    ("sched.fcfs", "from mpiflux import store"),
    ("sched.fcfs", "from ..store import kvs"),
    ("model.idset", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mpiflux.sched import pool"),
    ("__main__", "from mpiflux.instance import main"),
    ("__init__", "from .instance import main"),
    ("bridges.parsl", "import mpiflux.model.jobspec"),
])
def test_an_arrow_back_is_found(name: str, source: str) -> None:
    assert len(wrong_arrows(module(name, source))) == 1


@pytest.mark.parametrize(("name", "source"), [
    ("sched.fcfs", "from mpiflux.model.jobspec import Request\nfrom mpiflux.sched.pool import Pool\nimport heapq"),
    ("sched.policies.easy", "from ..pool import Pool\nfrom ...model import idset"),
    ("cli", "from . import run\nfrom ..instance import main"),
    ("__init__", "from .client import connect"),
    ("instance.loop", "import mpiflux\nfrom mpiflux import node, __version__"),
])
def test_an_allowed_arrow_is_not(name: str, source: str) -> None:
    assert wrong_arrows(module(name, source)) == []


@pytest.mark.parametrize("source", [
    "import os.path", "from os import path", "import time as t", "def f():\n    from mpi4py import MPI",
    "import numpy as np\nx = np.random.default_rng(1)", "import numpy.random", "from numpy import random",
    "text = open('f').read()", "from concurrent.futures import Executor",
])
def test_an_impurity_is_found(source: str) -> None:
    assert len(impurities(module("sched.fcfs", source))) == 1


def test_a_seeded_module_must_seed() -> None:
    name = next(iter(SEEDED_MODULES))
    assert impurities(module(name, "import numpy as np\nr = np.random.Generator(np.random.PCG64(seed))")) == []
    assert len(impurities(module(name, "import numpy as np\nr = np.random.default_rng()"))) == 1


def test_purity_is_not_taken_for_impurity() -> None:
    source = "import heapq\nimport numpy as np\nfrom mpiflux.sched import pool\nsched.open(1)\ntime = now + 1"
    assert impurities(module("sched.fcfs", source)) == []


def test_printing_and_pickling_are_found() -> None:
    assert len(printing(module("sched.fcfs", "import sys\nprint(1)\nsys.stderr.write('')"))) == 2
    assert len(pickling(module("sched.fcfs", "import pickle\nfrom cloudpickle import loads"))) == 2


WALL_CLOCK = {"instance.nesting", "instance.bootstrap", "instance.prepare", "cli.top", "cli.jobs", "cli.parser",
              "instance.walltime", "node.zygote"}
"""Modules that ask what time it is on the wall: to write it down, because a person named a time, or a file has one.
Whoever sets that clock back must not make others wait: time-outs and intervals are by the monotonic one."""


def test_only_what_is_written_down_is_by_the_clock_on_the_wall() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                    and (node.value.id, node.attr) in (("time", "time"), ("time", "time_ns"), ("datetime", "now"))):
                found.add(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    assert found == WALL_CLOCK
