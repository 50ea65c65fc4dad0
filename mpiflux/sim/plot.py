"""A picture of simulated runs: utilisation over time. Needs Matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

from mpiflux.sim.statistics import Statistics


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
