"""A picture of simulated runs: utilisation over time. Needs Matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mpiflux.sim.statistics import Statistics


def check_target(path: str) -> None:
    """Raise what :func:`plot_utilisation` would for this path, as far as can be seen before; nothing is written."""
    from matplotlib.backend_bases import FigureCanvasBase

    # as it guesses from a name
    ending = os.path.splitext(path)[1][1:].lower()
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if ending not in known:
        raise ValueError(f"its name does not end in a format: .png, .pdf, .svg, or one of {', '.join(known)}")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ValueError(f"there is no directory {folder}")
    if os.path.isdir(path):
        raise ValueError("it is a directory")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise ValueError("you may not write there")


def plot_utilisation(found: Sequence[Statistics], path: str) -> None:
    """One panel a resource, one line a run; ``path`` ends in the format (png, pdf, svg). Raises ImportError without
    Matplotlib, ValueError or OSError for a file that cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    resources = list(dict.fromkeys(name for one in found for name in one.curves))
    figure, axes = pyplot.subplots(max(len(resources), 1), 1, figsize=(8, 2.2 + 2 * len(resources)), squeeze=False,
                                   sharex=True)
    longest = max(one.makespan for one in found)
    unit, label = (3600.0, "hours") if longest > 7200 else (60.0, "minutes") if longest > 120 else (1.0, "seconds")
    for axis, resource in zip(axes[:, 0], resources, strict=False):
        for one in found:
            if resource in one.curves:
                axis.stairs(100 * one.curves[resource], one.edges / unit, label=one.name, linewidth=1.3)
        axis.set_ylabel(f"{resource} in use (%)")
        axis.set_ylim(0, 103)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize="small")
    axes[-1, 0].set_xlabel(f"virtual time ({label})")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
