"""What a rank opens and imports until it runs its first job: on a thousand nodes every one of these is a request to a
shared file system.

Two ranks run a few jobs. Each notes the modules that it has at its end; files opened, and files looked for
in vain, are counted by strace where it is installed, in a second run: those of MPI too, but nothing in /proc or /etc.

usage: bench_modules.py [--list]
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections import Counter

from _common import EXAMPLES, Scratch, launcher, machine, table, timed

WRAPPER = """
import json, os, sys
out = sys.argv.pop(1)
rank = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
from mpiflux.cli.main import main
status = main(sys.argv[1:])
with open(f"{out}.{rank}", "w") as file:
    json.dump(sorted(sys.modules), file)
sys.exit(status)
"""
SHOWN = re.compile(r"^(?:\[pid +\d+\] )?(?:\d+ +)?(openat|open|newfstatat|stat|access|readlink)\((.*)$")
LOCAL = ("/proc", "/sys", "/dev", "/tmp", "/run", "/var", "/etc")
"""Where nothing is on a shared file system."""


def modules(scratch: str) -> dict[str, list[str]]:
    wrapper, out = os.path.join(scratch, "wrapper.py"), os.path.join(scratch, "modules")
    with open(wrapper, "w") as file:
        file.write(WRAPPER)
    timed([*launcher(2), sys.executable, wrapper, out, "run", str(EXAMPLES / "stress.yaml"), "--set", "n=4",
           "--run-dir", os.path.join(scratch, "one"), "--progress", "none"])
    found = {}
    for rank in ("0", "1"):
        with open(f"{out}.{rank}") as file:
            found[rank] = json.load(file)
    return found


def calls(scratch: str) -> dict[str, tuple[list[str], list[str]]]:
    """By rank, (files opened, paths asked for in vain), of what is not on the node itself."""
    traced = os.path.join(scratch, "traced.sh")
    with open(traced, "w") as file:
        file.write("#!/bin/sh\nexec strace -f -e trace=%file "
                   f'-o "{scratch}/trace.$PMI_RANK$OMPI_COMM_WORLD_RANK" "$@"\n')
    os.chmod(traced, 0o755)
    timed([*launcher(2), traced, sys.executable, "-m", "mpiflux", "run", str(EXAMPLES / "stress.yaml"), "--set", "n=4",
           "--run-dir", os.path.join(scratch, "two"), "--progress", "none"])
    found = {}
    for rank in ("0", "1"):
        opened, missed = [], []
        with open(os.path.join(scratch, f"trace.{rank}"), errors="replace") as file:
            for line in file:
                call = SHOWN.match(line)
                path = re.search(r'"(/[^"]*)"', line)
                if not call or not path or path[1].startswith(LOCAL):
                    continue
                if " = -1 " in line:
                    missed.append(path[1])
                elif call[1].startswith("open"):
                    opened.append(path[1])
        found[rank] = opened, missed
    return found


def main() -> None:
    print(machine())
    with Scratch() as scratch:
        found = modules(scratch)
        counted = calls(scratch) if shutil.which("strace") else {}
    rows: list[tuple[object, ...]] = []
    for rank, names in found.items():
        of = Counter(name.partition(".")[0] for name in names)
        opened, missed = counted.get(rank, ([], []))
        rows.append(("rank 0" if rank == "0" else "a leaf rank", len(names), of["mpiflux"], of["numpy"], of["mpi4py"],
                     len(opened) or "-", len(set(opened)) or "-", len(missed) or "-"))
    print(table(rows, ("", "modules", "of mpiflux", "of numpy", "of mpi4py", "files opened", "different ones",
                       "looked for in vain")))
    if "--list" in sys.argv:
        print("\nmodules of a leaf rank:", *found["1"], sep="\n  ")
        print("\nfiles of a leaf rank:", *sorted(set(counted.get("1", ([], []))[0])), sep="\n  ")


if __name__ == "__main__":
    main()
