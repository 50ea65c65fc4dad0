"""The C part of a supervisor, :file:`quick.c`, as ctypes sees it; it need not be there.

It is built by ``pip install`` where there is a C compiler. ``MPIFLUX_NATIVE=0`` in the environment of an instance does
without it.
"""

from __future__ import annotations

import ctypes
import os
from importlib.machinery import EXTENSION_SUFFIXES

MORE, EVENTS, TIMER, CANNOT, UNUSUAL, UNKNOWN, SIGNAL, FAILED = range(1, 9)
"""Why :func:`run` has returned; ``enum reason`` in the C file says what each means."""

VERSION = 1
"""That of the C file: one that was built before a change must not be used after it."""

DIRECTORY = os.path.dirname(__file__)
"""Where the library is."""

_i32, _u32, _i64, _u64, _double, _p = (ctypes.c_int32, ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64,
                                       ctypes.c_double, ctypes.c_void_p)


class Slot(ctypes.Structure):
    """``struct slot``."""

    _fields_ = [
        ("envp", _p), ("digits", _p * 3), ("cpus", _p), ("out", _i32), ("out_child", _i32), ("err", _i32),
        ("err_child", _i32), ("r_id", _u32), ("pid", _i32), ("index", _i64), ("t_start", _double), ("attempt", _i32),
    ]


class State(ctypes.Structure):
    """``struct quick``."""

    _fields_ = [
        ("epoll", _i32), ("signals", _i32), ("children", _i32), ("null", _i32),
        ("offset", _double), ("young", _double), ("flush", _double), ("allowed", _p), ("cpus_size", _u64),
        ("slots", _p), ("n_slots", _i32), ("n_own", _i32), ("own_at", _i32), ("attempt", _i32),
        ("cwd", ctypes.c_char_p), ("first_id", _u64), ("limit", _u64), ("owner", _u32), ("default_policy", _i32),
        ("unbind", _i32), ("known", _i32), ("index", _i64), ("step", _i64), ("argvs", _p), ("paths", _p), ("owns", _p),
        ("at", _i32), ("count", _i32), ("constant", _i32), ("eager", _i32),
        ("due", _double), ("oldest", _double), ("now", _double),
        ("records", _p), ("output", _p), ("records_size", _u64), ("records_room", _u64), ("output_size", _u64),
        ("output_room", _u64), ("seconds", _double), ("started", _i64), ("ended", _i64),
        ("bound", _i32), ("slot", _i32), ("status", _i32), ("error", _i32), ("pid", _i32), ("signal", _i32),
        ("utime", _double), ("stime", _double), ("maxrss", _u64),
    ]


def load() -> ctypes.CDLL | None:
    """The library; None where it was not built, was built from another version of its source, or is not wanted."""
    if os.environ.get("MPIFLUX_NATIVE") == "0":
        return None
    stem = os.path.join(DIRECTORY, "_quick")
    for suffix in EXTENSION_SUFFIXES:
        try:
            library = ctypes.CDLL(stem + suffix)
            sizes = library.mpiflux_quick_sizes
        except (OSError, AttributeError):
            continue
        sizes.restype = _u64
        if sizes() != VERSION << 32 | ctypes.sizeof(State) << 16 | ctypes.sizeof(Slot):
            continue
        library.mpiflux_quick_run.argtypes = [_p]
        library.mpiflux_quick_begin()
        return library
    return None
