"""``python -m mpiflux``, and the command ``mpiflux``."""

from __future__ import annotations

import gc
import os
import sys

from mpiflux.cli.first import begin

begin()

# modules are mostly what stays: looking through them again and again costs a tenth of a rank's start
gc.set_threshold(20_000, 10, 10)

try:
    from mpiflux.cli import main as cli
except KeyboardInterrupt:
    os._exit(130)

__all__ = ["main"]


def main() -> int:
    """Run one command; its exit status. A process that was a rank ends here.

    To take the interpreter down piece by piece costs a rank 20 to 40 ms of CPU, and gives back what the kernel takes
    back anyway. C's ``exit`` it has to be: MPICH says its farewell to the launcher there, which kills who does not.
    """
    status = cli.main()
    if "mpiflux.instance.bootstrap" in sys.modules:
        import ctypes

        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            return status
        # as a PyDLL it keeps the lock: no other thread goes on meanwhile
        ctypes.PyDLL(None).exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
