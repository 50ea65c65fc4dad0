#!/usr/bin/env python3
"""Fit a surrogate of the fusion yield to an ensemble, report its held-out error, and draw it.

Runs as a job of ``workflow.yaml``, after the ensemble. The yields come from the instance's store, as the
standard output of the ``sim`` jobs; no file is read. Also works on the directory of a finished run:

    python surrogate.py --run-dir RUNDIR

The surrogate is the mean of a Gaussian process with a Matern-5/2 kernel (C. E. Rasmussen, C. K. I.
Williams, Gaussian Processes for Machine Learning, MIT Press, 2006) of log10(yield); the length scale of
each input and the noise are those of the least leave-one-out error, which has a closed form (equation 5.12
there). Sensitivities are Sobol' total indices by Jansen's estimator (M. J. W. Jansen, Comput. Phys. Commun.
117, 35 (1999)) on the surrogate.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

INPUTS = ("velocity", "adiabat", "mass", "mix")
LABELS = {"velocity": "implosion velocity (km/s)", "adiabat": "adiabat", "mass": "shell mass (µg)",
          "mix": "carbon mix (at. %)"}
HELD_OUT = 0.2
"""Share of the samples that the fit never sees."""
FEWEST = 30
"""Samples below which a fit in four dimensions says nothing."""
SEED = 20
TUNING_SAMPLES = 600
"""Length scales are tuned on this many samples: the cost grows with the cube."""


def parse_outputs(outputs):
    """Inputs (n, 4) and log10 yields (n,) from jobs' standard outputs, and how many of those held no result.

    The last line of an output is the JSON that ``icf.py`` prints; None stands for a job that failed.
    """
    rows, skipped = [], 0
    for text in outputs:
        try:
            record = json.loads(text.strip().splitlines()[-1])
            row = [float(record[name]) for name in INPUTS] + [np.log10(float(record["yield"]))]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            skipped += 1
            continue
        rows.append(row)
    table = np.array(rows, dtype=float).reshape(-1, len(INPUTS) + 1)
    good = np.isfinite(table).all(axis=1)
    return table[good, :-1], table[good, -1], skipped + int((~good).sum())


def matern(a, b, widths):
    """Matern-5/2 correlations of the rows of ``a`` with those of ``b``; ``widths`` are length scales."""
    a, b = a / widths, b / widths
    square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2.0 * a @ b.T
    r = np.sqrt(5.0 * np.maximum(square, 0.0))
    return (1.0 + r + r * r / 3.0) * np.exp(-r)


@dataclass
class Surrogate:
    """A fitted Gaussian process. Inputs are scaled to [-1, 1] over ``low`` … ``high``."""

    low: np.ndarray
    high: np.ndarray
    widths: np.ndarray
    noise: float
    points: np.ndarray
    mean: float
    weights: np.ndarray
    inverse: np.ndarray
    scale: float

    def _unit(self, x):
        return 2.0 * (np.atleast_2d(x) - self.low) / (self.high - self.low) - 1.0

    def predict(self, x, chunk=2000):
        """The mean at each row of ``x``."""
        u = self._unit(x)
        return np.concatenate([self.mean + matern(u[i:i + chunk], self.points, self.widths) @ self.weights
                               for i in range(0, len(u), chunk)])

    def deviation(self, x):
        """Standard deviation of the prediction at each row of ``x``."""
        k = matern(self._unit(x), self.points, self.widths)
        return self.scale * np.sqrt(np.maximum(1.0 - ((k @ self.inverse) * k).sum(1), 0.0))


def _solve(u, z, widths, noise):
    """Weights and inverse kernel matrix, and the root mean square leave-one-out error."""
    inverse = np.linalg.inv(matern(u, u, widths) + noise * np.eye(len(u)))
    weights = inverse @ z
    return weights, inverse, float(np.sqrt(np.mean((weights / np.diag(inverse)) ** 2)))


def fit(x, y):
    """A :class:`Surrogate` of ``y`` (n,) on ``x`` (n, d)."""
    low, high = x.min(0), x.max(0)
    if np.any(high <= low):
        raise ValueError(f"input {int(np.argmax(high <= low))} does not vary: "
                         "the ensemble must sample every input")
    u, mean = 2.0 * (x - low) / (high - low) - 1.0, float(y.mean())
    few = slice(0, TUNING_SAMPLES)
    best = min((_solve(u[few], y[few] - mean, np.full(x.shape[1], w), noise)[2], w, noise)
               for w in (0.5, 1.0, 2.0, 4.0) for noise in (1e-8, 1e-5, 1e-3))
    loo, widths, noise = best[0], np.full(x.shape[1], best[1]), best[2]
    for factor in (2.0, 2.0, 1.4, 1.4):
        for j in range(x.shape[1]):
            for f in (factor, 1.0 / factor):
                trial = widths.copy()
                trial[j] *= f
                error = _solve(u[few], y[few] - mean, trial, noise)[2]
                if error < loo:
                    loo, widths = error, trial
    weights, inverse, _ = _solve(u, y - mean, widths, noise)
    scale = float(np.sqrt(max((y - mean) @ weights, 0.0) / len(y)))
    return Surrogate(low, high, widths, noise, u, mean, weights, inverse, scale)


def split(n, seed=SEED):
    """Indices to train on and to hold out, the same for the same ``n`` and ``seed``."""
    order = np.random.default_rng(seed).permutation(n)
    cut = max(1, round(HELD_OUT * n))
    return order[cut:], order[:cut]


def errors(truth, predicted):
    """Root mean square error, coefficient of determination, and largest absolute error."""
    residual = truth - predicted
    rest = float(((truth - truth.mean()) ** 2).sum())
    r2 = 1.0 - float((residual ** 2).sum()) / rest if rest else float("nan")
    return {"rmse": float(np.sqrt(np.mean(residual ** 2))), "r2": r2,
            "max_error": float(np.abs(residual).max())}


def sensitivities(surrogate, base=1024, seed=SEED):
    """Sobol' total index of each input, for inputs uniform over the sampled box: the share of the variance of
    the prediction that would remain if all other inputs were known."""
    rng = np.random.default_rng(seed)
    span, d = surrogate.high - surrogate.low, len(surrogate.low)
    a, b = (surrogate.low + span * rng.random((base, d)) for _ in range(2))
    at_a = surrogate.predict(a)
    variance = float(np.var(np.concatenate([at_a, surrogate.predict(b)])))
    total = []
    for j in range(d):
        mixed = a.copy()
        mixed[:, j] = b[:, j]
        total.append(float(np.mean((at_a - surrogate.predict(mixed)) ** 2)) / (2.0 * variance))
    return total


def draw(path, surrogate, truth, predicted, score, total, samples):
    """The figure: parity of the held-out samples, a slice with its uncertainty, and the sensitivities."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blue, red, grey = "#1f5a94", "#c2452d", "#6b7280"
    figure = Figure(figsize=(13.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    parity, cut, bars = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1.0, 1.25, 0.85]})
    figure.suptitle(f"Surrogate of the fusion yield from {samples:,} hot-spot simulations", fontsize=13,
                    fontweight="bold")

    lowest, highest = min(truth.min(), predicted.min()) - 0.15, max(truth.max(), predicted.max()) + 0.15
    parity.plot([lowest, highest], [lowest, highest], color=grey, lw=1, zorder=1)
    parity.scatter(truth, predicted, s=14, color=blue, alpha=0.55, linewidths=0, zorder=2)
    parity.set(xlim=(lowest, highest), ylim=(lowest, highest), aspect="equal",
               xlabel="simulated log$_{10}$ yield", ylabel="predicted log$_{10}$ yield",
               title=f"{len(truth):,} held-out samples")
    parity.text(0.05, 0.95, f"R² = {score['r2']:.3f}\nRMSE = {score['rmse']:.3f} decades",
                transform=parity.transAxes, va="top", fontsize=10)

    middle = 0.5 * (surrogate.low + surrogate.high)
    velocity = np.linspace(surrogate.low[0], surrogate.high[0], 160)
    span = surrogate.high[1] - surrogate.low[1]
    adiabats = np.round(surrogate.low[1] + span * np.array([0.2, 0.5, 0.8]), 1)
    for adiabat, colour in zip(adiabats, (blue, "#3a9188", red), strict=True):
        x = np.tile(middle, (len(velocity), 1))
        x[:, 0], x[:, 1] = velocity, adiabat
        y, spread = surrogate.predict(x), 2.0 * surrogate.deviation(x)
        cut.fill_between(velocity, 10 ** (y - spread), 10 ** (y + spread), color=colour, alpha=0.18,
                         linewidth=0)
        cut.plot(velocity, 10 ** y, color=colour, lw=2, label=f"adiabat {adiabat:.1f}")
    cut.set(yscale="log", xlim=(velocity[0], velocity[-1]), xlabel=LABELS["velocity"], ylabel="DT neutrons",
            title=f"mass {middle[2]:.0f} µg, mix {middle[3]:.1f} %; band ±2σ")
    cut.legend(frameon=False, loc="upper left")

    order = np.argsort(total)
    bars.barh([INPUTS[i] for i in order], [total[i] for i in order], color=blue, height=0.55)
    for place, i in enumerate(order):
        bars.text(total[i] + 0.015, place, f"{total[i]:.2f}", va="center", fontsize=9)
    bars.set(xlim=(0, max(total) * 1.2), xlabel="Sobol' total index", title="what the yield depends on")
    for axes in (parity, cut, bars):
        axes.title.set_fontsize(10.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x" if axes is bars else "both", color="#e5e7eb", lw=0.7)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=150)


def ascii_parity(truth, predicted, width=56, height=18):
    """The parity plot as text: digits count samples, 9 for nine or more; dots are the diagonal."""
    low, high = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
    span = (high - low) or 1.0
    columns = np.clip(((truth - low) / span * (width - 1)).round().astype(int), 0, width - 1)
    rows = np.clip(((predicted - low) / span * (height - 1)).round().astype(int), 0, height - 1)
    count = np.zeros((height, width), dtype=int)
    np.add.at(count, (rows, columns), 1)
    diagonal = {(round(c * (height - 1) / (width - 1)), c) for c in range(width)}
    lines = [f"predicted log10 yield, {low:.2f} to {high:.2f}"]
    for r in range(height - 1, -1, -1):
        lines.append("|" + "".join(str(min(n, 9)) if n else "." if (r, c) in diagonal else " "
                                   for c, n in enumerate(count[r])))
    return "\n".join([*lines, "+" + "-" * width, f" simulated log10 yield, {low:.2f} to {high:.2f}"])


def analyse(x, y, skipped, image):
    """Fit, report on standard output (last line JSON), draw to ``image``; returns the report."""
    train, test = split(len(y))
    surrogate = fit(x[train], y[train])
    predicted = surrogate.predict(x[test])
    score, total = errors(y[test], predicted), sensitivities(surrogate)
    try:
        draw(image, surrogate, y[test], predicted, score, total, len(y))
        drawn = str(image)
    except ImportError:
        print(ascii_parity(y[test], predicted))
        drawn = ""
    print(f"samples      {len(y)} ({len(train)} to fit, {len(test)} held out, "
          f"{skipped} jobs without a result)")
    print(f"log10 yield  {y.min():.2f} to {y.max():.2f}")
    print(f"held out     R^2 {score['r2']:.4f}, RMSE {score['rmse']:.4f} decades, "
          f"worst {score['max_error']:.2f}")
    ranked = sorted(zip(INPUTS, total, strict=True), key=lambda pair: -pair[1])
    print("sensitivity  " + ", ".join(f"{name} {share:.2f}" for name, share in ranked))
    print(f"plot         {drawn or 'as text above: matplotlib is not installed'}")
    report = {"samples": len(y), "held_out": len(test), "skipped": skipped, **score,
              "sensitivity": dict(zip(INPUTS, total, strict=True)), "plot": drawn}
    print(json.dumps(report))
    return report


def main(argv=None):
    parser = argparse.ArgumentParser(description="Fit a surrogate to the yields of an ensemble.",
                                     epilog="example: python surrogate.py --run-dir runs/icf-uq")
    parser.add_argument("--name", default="sim", help="name of the ensemble's jobs (default sim)")
    parser.add_argument("--run-dir", help="run directory; default: that of the instance this job runs in")
    parser.add_argument("--image", help="plot to write; default: icf_uq.png in the run directory")
    args = parser.parse_args(argv)
    import mpiflux

    home = args.run_dir or os.environ.get("MPIFLUX_RUN_DIR")
    if not home:
        parser.error("not inside an mpiflux job: name a run directory with --run-dir")
    with mpiflux.connect(args.run_dir) if args.run_dir else mpiflux.connect() as flux:
        outputs = [job.stdout if job.returncode == 0 else None
                   for job in flux.jobs(name=args.name, with_output=True)]
    x, y, skipped = parse_outputs(outputs)
    if len(y) < FEWEST:
        print(f"surrogate.py: {len(y)} results among {len(outputs)} jobs named {args.name!r}, at least "
              f"{FEWEST} are needed; see 'mpiflux jobs {home}' for what failed", file=sys.stderr)
        return 1
    analyse(x, y, skipped, Path(args.image) if args.image else Path(home) / "icf_uq.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
