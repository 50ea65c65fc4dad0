"""``posix_spawn`` with what :func:`os.posix_spawn` lacks: a working directory, and C arrays that are built once.

A supervisor starts thousands of processes a second whose environments differ in three strings. ``os.posix_spawn``
encodes the whole environment each time; here the ``envp`` array is kept and three pointers are set.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Sequence

StringArray = ctypes.Array[ctypes.c_char_p]

_libc = ctypes.CDLL(None, use_errno=True)
_spawn = _libc.posix_spawn
_spawn.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]

# posix_spawnattr_t is 336 and posix_spawn_file_actions_t 80 bytes in glibc, less in musl; sigset_t is 128
_OPAQUE = 512
_SETPGROUP, _SETSIGDEF, _SETSIGMASK, _SETSCHEDULER = 2, 4, 8, 32
_FLAGS = _SETPGROUP | _SETSIGDEF | _SETSIGMASK
_ACTIONS_KEPT = 256
_DIGITS = 24

_SFD_CLOEXEC, _SFD_NONBLOCK = 0o2000000, 0o4000


def prctl(option: int, value: int) -> None:
    """``prctl(2)``. Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_PR_SET_NAME = 15


def set_name(name: str) -> None:
    """What ``ps`` and ``/proc/PID/comm`` call this process; at most 15 bytes."""
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0)


def kill_group(pgid: int, sig: int) -> bool:
    """Signal a process group; False when there is none. No exception: it is called for every job that ends."""
    return bool(_libc.killpg(pgid, sig) == 0)


def signalfd(signals: set[int]) -> int:
    """Block ``signals`` in this thread and return a descriptor that is readable when one is pending."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    mask = ctypes.create_string_buffer(128)
    _libc.sigemptyset(mask)
    for number in signals:
        _libc.sigaddset(mask, number)
    fd = _libc.signalfd(-1, mask, _SFD_CLOEXEC | _SFD_NONBLOCK)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)


def string_array(strings: Sequence[bytes]) -> StringArray:
    """A NULL-ended ``char *[]`` that keeps its strings alive. Raises ValueError for one with a NUL byte in it."""
    for string in strings:
        if b"\0" in string:
            raise ValueError(f"{os.fsdecode(string)!r} has a NUL byte in it")
    return (ctypes.c_char_p * (len(strings) + 1))(*strings)


class Environment:
    """An ``envp`` array of constants, of numbers that are written anew for each process, and of ``slots`` free entries.

    ``numbers`` are names of variables that :meth:`set_number` sets, by position; they begin as 0.
    """

    def __init__(self, constants: Sequence[bytes], numbers: Sequence[bytes] = (), slots: int = 0) -> None:
        self.array = string_array([*constants, *(name + b"=" for name in numbers), *([b"="] * slots)])
        self.first_slot = len(constants) + len(numbers)
        self._buffers = []
        self._digits: list[memoryview] = []
        for place, name in enumerate(numbers, len(constants)):
            buffer = ctypes.create_string_buffer(name + b"=0", len(name) + 1 + _DIGITS)
            self._buffers.append(buffer)
            self._digits.append(memoryview(buffer).cast("B")[len(name) + 1:])
            self.array[place] = ctypes.cast(buffer, ctypes.c_char_p)

    @property
    def addresses(self) -> tuple[int, tuple[int, ...]]:
        """Where the array is, and where the digits of the first three numbers are."""
        digits = tuple(ctypes.addressof(buffer) + len(buffer) - _DIGITS for buffer in self._buffers[:3])
        return ctypes.addressof(self.array), digits

    def set_number(self, position: int, value: int) -> None:
        """Give the ``position``-th of ``numbers`` a value of at most 20 digits."""
        text = b"%d\0" % value
        self._digits[position][:len(text)] = text

    def set_slot(self, position: int, entry: bytes) -> None:
        """Put ``NAME=value`` into the ``position``-th free entry. Raises ValueError for a NUL byte."""
        if b"\0" in entry:
            raise ValueError(f"{os.fsdecode(entry)!r} has a NUL byte in it")
        self.array[self.first_slot + position] = entry


class Spawner:
    """Starts processes in process groups of their own, with default signal handling and an empty signal mask."""

    def __init__(self) -> None:
        self._attr = ctypes.create_string_buffer(_OPAQUE)
        _libc.posix_spawnattr_init(self._attr)
        _libc.posix_spawnattr_setflags(self._attr, ctypes.c_short(_FLAGS))
        _libc.posix_spawnattr_setpgroup(self._attr, 0)
        signals = ctypes.create_string_buffer(128)
        _libc.sigemptyset(signals)
        _libc.posix_spawnattr_setsigmask(self._attr, signals)
        _libc.sigfillset(signals)
        _libc.posix_spawnattr_setsigdefault(self._attr, signals)
        self._group = 0
        self._pid = ctypes.c_int()
        self._pid_ref = ctypes.byref(self._pid)
        self._actions: dict[tuple[tuple[int, int, int], bytes], ctypes.Array[ctypes.c_char]] = {}

    def reset_policy(self, on: bool) -> None:
        """Whether processes start with the default scheduling policy instead of ours."""
        # policy and parameters of a fresh attribute object are 0: SCHED_OTHER
        _libc.posix_spawnattr_setflags(self._attr, ctypes.c_short(_FLAGS | _SETSCHEDULER if on else _FLAGS))

    def spawn(self, path: bytes, argv: StringArray, env: Environment, fds: tuple[int, int, int],
              cwd: bytes = b"", group: int = 0) -> int:
        """Start ``path``; returns its pid.

        ``fds`` become its 0, 1, 2 (−1 keeps ours); ``group`` is the process group to join, 0 for a new one.
        Raises OSError with the reason that ``execve`` or ``chdir`` gave.
        """
        actions = self._actions.get((fds, cwd))
        if actions is None:
            actions = self._make_actions(fds, cwd)
        if group != self._group:
            _libc.posix_spawnattr_setpgroup(self._attr, group)
            self._group = group
        code = _spawn(self._pid_ref, path, actions, self._attr, argv, env.array)
        if code:
            raise OSError(code, os.strerror(code), os.fsdecode(path))
        return self._pid.value

    def _make_actions(self, fds: tuple[int, int, int], cwd: bytes) -> ctypes.Array[ctypes.c_char]:
        # descriptor numbers repeat, since the kernel always takes the lowest free one
        if len(self._actions) >= _ACTIONS_KEPT:
            for old in self._actions.values():
                _libc.posix_spawn_file_actions_destroy(old)
            self._actions.clear()
        actions = ctypes.create_string_buffer(_OPAQUE)
        _libc.posix_spawn_file_actions_init(actions)
        for target, fd in enumerate(fds):
            if fd >= 0:
                _libc.posix_spawn_file_actions_adddup2(actions, fd, target)
        if cwd and _libc.posix_spawn_file_actions_addchdir_np(actions, cwd) != 0:
            raise OSError(errno.ENOMEM, "cannot prepare the working directory", os.fsdecode(cwd))
        self._actions[fds, cwd] = actions
        return actions


def find_program(name: bytes, search: bytes, cwd: bytes) -> bytes:
    """The file that a shell would run for ``name`` with ``PATH=search`` in ``cwd``.

    Raises FileNotFoundError or PermissionError (found, but not executable).
    """
    if b"/" in name:
        return name
    denied = False
    for directory in search.split(b":"):
        candidate = os.path.join(directory or b".", name)
        full = os.path.join(cwd, candidate) if cwd else candidate
        if os.path.isfile(full):
            if os.access(full, os.X_OK):
                return full
            denied = True
    text = os.fsdecode(name)
    if denied:
        raise PermissionError(errno.EACCES, "is not executable", text)
    raise FileNotFoundError(errno.ENOENT, "command not found", text)
