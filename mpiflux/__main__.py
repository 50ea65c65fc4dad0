"""``python -m mpiflux``."""

from __future__ import annotations

import sys

from mpiflux.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
