"""Commands whose output a job must give back as it is, byte for byte."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.mpi import clean_environment
from tests.support.runs import ROOT, Place, Run

PY = sys.executable
BYTES = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 7); sys.stderr.buffer.write(bytes(range(255, -1, -1)))"
MEGABYTE = "import sys; sys.stdout.write(''.join(f'{i:07d}\\n' for i in range(131072)))"
BOTH = """
import os
for i in range(3000):
    os.write(1, b"out %d\\n" % i * 10)
    os.write(2, b"err %d\\n" % i * 10)
"""
SLOW = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo out $i; echo err $i >&2; sleep 0.1; done"
STATUS = """
import os, signal
for line in open("/proc/self/status"):
    name, value = line.split(":", 1)
    if name in ("SigPnd", "SigBlk", "SigIgn", "SigCgt", "ShdPnd", "CapEff"):
        # glibc's posix_spawn leaves its own two signals, 32 and 33, ignored
        print(name, hex(int(value, 16) & ~(3 << 31)))
print(signal.getsignal(signal.SIGPIPE), sorted(os.listdir("/proc/self/fd")), os.umask(0), os.nice(0))
"""

LISTS: dict[str, list[str]] = {
    "words": ["printf", "[%s]\\n", "a b", "", "'", '"', "$HOME", "*", "back\\slash", "tab\there", "line\nbreak", "-n"],
    "unicode": ["printf", "%s\\n", "ψ → ∞", "naïve", "日本語", "🜚", "e\u0301"],
    "nothing": ["true"],
    "no-newline": ["printf", "no newline at the end"],
    "newlines": ["printf", "\\n\\n\\n"],
    "carriage": ["printf", "10 %%\\r20 %%\\r\\n"],
    "binary": [PY, "-c", BYTES],
    "zeros": ["head", "-c", "100000", "/dev/zero"],
    "megabyte": [PY, "-c", MEGABYTE],
    "megabyte-of-errors": [PY, "-c", MEGABYTE.replace("stdout", "stderr")],
    "mixed": [PY, "-c", BOTH],
    "no-input": ["cat"],
    "status": [PY, "-c", STATUS],
    "exit-1": ["false"],
    "relative": ["./here.sh", "one"],
}
"""Given as argument vectors."""

SHELL: dict[str, str] = {
    "pipe": "printf 'c\\nb\\na\\n' | sort | tr '\\n' ,",
    "errors": "echo to stderr >&2; echo to stdout; echo to stderr again >&2; exit 3",
    "slow": SLOW,
    "limits": "ulimit -a; umask; ulimit -Hn",
    "directory": "pwd; ls -a | wc -l >/dev/null",
    "descriptors": "ls /proc/self/fd | grep -c .",
    "late": "(sleep 0.3; echo late) & echo early",
    "closed": "exec >&- 2>&-; exit 5",
    "yes": "yes | head -n 3",
    "exit-77": "exit 77",
    "exit-255": "echo last words; exit 255",
    "term": "echo before; kill -TERM $$; sleep 5",
    "kill": "echo before; kill -KILL $$",
    "segv": "ulimit -c 0; kill -SEGV $$",
    "usr1": "kill -USR1 $$",
    "trap": "trap 'echo caught; exit 9' TERM; kill -TERM $$; sleep 5",
    "locale": "locale 2>/dev/null; printf '\\303\\251\\377\\n'",
    "not-found": "/no/such/command",
}
"""Given to a shell."""

SCRIPTS: dict[str, str] = {
    "bash": "#!/bin/bash\nset -eu\nfor i in 1 2 3; do echo line $i; done\necho \"${{BASH_VERSION:+bash}}\"\nexit 4\n",
    "python": f"#!{PY} -I\nimport sys\nprint(sys.flags.isolated, len(sys.argv))\nsys.exit('the end')\n",
    "plain": "echo no first line; echo $((6 * 7))\n",
    "env": "#!/usr/bin/env python3\nprint('by env')\n",
}


def make_files(place: Place) -> None:
    """What some of the commands need."""
    here = place.write("here.sh", "#!/bin/sh\necho \"$0 $1\"; pwd\n")
    here.chmod(0o755)
    place.write("data", "no program\n")


def workflow() -> dict[str, Any]:
    """One job for every command; braces in them are doubled."""
    def plain(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    jobs: dict[str, Any] = {name: {"command": [plain(word) for word in argv]} for name, argv in LISTS.items()}
    jobs.update({f"sh-{name}": {"command": plain(text), "shell": True} for name, text in SHELL.items()})
    jobs.update({f"script-{name}": {"script": text} for name, text in SCRIPTS.items()})
    return {"jobs": jobs}


def by_shell(name: str, place: Place) -> tuple[int, bytes, bytes]:
    """The same command started without us: exit status, stdout, stderr."""
    if name.startswith("sh-"):
        argv = ["/bin/sh", "-c", SHELL[name[3:]]]
    elif name.startswith("script-"):
        path = place.path / "script"
        place.expected.add(path.name)
        path.write_text(SCRIPTS[name[7:]].replace("{{", "{").replace("}}", "}"))
        path.chmod(stat.S_IRWXU)
        argv = [str(path)] if path.read_text().startswith("#!") else ["/bin/sh", str(path)]
    else:
        argv = LISTS[name]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, cwd=place.path, timeout=30,
                          env=clean_environment({"PYTHONPATH": str(ROOT)}))
    return done.returncode, done.stdout, done.stderr


def differences(run: Run, place: Place) -> list[str]:
    """What jobs gave that the same commands by a shell did not."""
    found = []
    for job in run.jobs():
        wanted = by_shell(job["name"], place)
        got = (job["returncode"], *(os.fsencode(job[stream]) for stream in ("stdout", "stderr")))
        for what, mine, shells in zip(("exit status", "stdout", "stderr"), got, wanted, strict=True):
            if mine != shells:
                found.append(f"{job['name']}: {what} is {mine!r:.300}, by a shell {shells!r:.300} {job['reason']}")
        if job["result"] != ("COMPLETED" if wanted[0] == 0 else "FAILED"):
            found.append(f"{job['name']}: {job['result']} after exit status {wanted[0]}")
    return found


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(stat.S_IRWXU)
    return path
