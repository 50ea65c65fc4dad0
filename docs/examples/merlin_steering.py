#!/usr/bin/env python3
"""An ensemble whose surrogate learns while results arrive and chooses the next samples, as Merlin's studies do.

The program starts with a few random samples of an implosion model, keeps every core busy, and each time results have
come fits a Gaussian process to all of them; the next samples are those with the largest expected improvement. Results
are taken in the order in which jobs end, by callbacks on their events.

    mpiflux start -- python merlin_steering.py --samples 40

The model is the Rayleigh-like compression of a shell, integrated in time: real arithmetic, small. After J. L. Peterson
et al., Enabling machine learning-ready HPC ensembles with Merlin, Future Generation Computer Systems 131 (2022), and
D. R. Jones et al., Efficient global optimization of expensive black-box functions, J. Global Optim. 13 (1998).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from concurrent.futures import FIRST_COMPLETED, wait

import numpy as np

import mpiflux

INPUTS = {"drive": (0.5, 2.0), "thickness": (0.5, 2.0), "mix": (0.0, 0.5)}
LENGTH, NOISE = 0.35, 1e-4
"""Length scale of the surrogate in units of the inputs' ranges, and variance of its noise."""


# -- the simulation: one job a sample --------------------------------------------------------------------------------


def simulate(drive, thickness, mix):
    """Log yield of a shell driven inwards against the gas in it: r'' = -drive / m + p0 r**-4 / m, to stagnation."""
    mass, r, v, dt = 0.4 + thickness, 1.0, 0.0, 1e-4
    preheat = 0.02 * drive**2 / thickness
    while True:
        p = (0.05 + preheat) * r**-5
        a = (p * r**2 - drive * r**2 * math.exp(-3 * (1 - r))) / mass
        v += a * dt
        r += v * dt
        if v > 0 and r < 1:
            break
    breakup = math.exp(-((drive / thickness) / 1.6) ** 4)
    temperature = p * r**3 * 40 * (1 - mix)
    return math.log10(1e-6 + breakup * r**-3 * temperature**3)


# -- the surrogate ---------------------------------------------------------------------------------------------------


class Surrogate:
    """A Gaussian process with a squared-exponential kernel; inputs in the unit cube."""

    def __init__(self, x, y):
        self.x, self.mean, self.scale = x, float(np.mean(y)), float(np.std(y)) or 1.0
        self.chol = np.linalg.cholesky(self.kernel(x, x) + NOISE * np.eye(len(x)))
        self.weights = np.linalg.solve(self.chol.T, np.linalg.solve(self.chol, (y - self.mean) / self.scale))

    @staticmethod
    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * LENGTH**2))

    def predict(self, x):
        """(mean, standard deviation) at each row."""
        k = self.kernel(x, self.x)
        v = np.linalg.solve(self.chol, k.T)
        deviation = np.sqrt(np.maximum(1 + NOISE - (v**2).sum(0), 1e-12))
        return self.mean + self.scale * (k @ self.weights), self.scale * deviation


def improvement(surrogate, x, best):
    """Expected improvement on ``best`` at each row."""
    mean, deviation = surrogate.predict(x)
    z = (mean - best) / deviation
    cdf = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    return (mean - best) * cdf + deviation * np.exp(-z**2 / 2) / math.sqrt(2 * math.pi)


# -- the study -------------------------------------------------------------------------------------------------------


class Study:
    """What was sampled and what came of it."""

    def __init__(self, first, samples):
        self.first, self.samples = first, samples
        self.rng = np.random.default_rng(11)
        self.asked, self.x, self.y = [], [], []
        self.random, self.chosen = [], []
        """Results of the random samples, and of those that the surrogate chose."""

    def choose(self):
        """The next sample, and whether the surrogate chose it: random at first, then where improvement is expected,
        given what runs already."""
        chosen = len(self.asked) >= self.first and len(self.y) > 1
        if not chosen:
            point = self.rng.uniform(size=len(INPUTS))
        else:
            x, y = np.array(self.x), np.array(self.y)
            surrogate = Surrogate(x, y)
            running = [point for point in self.asked if not any(point is done for done in self.x)]
            if running:
                # believe what the surrogate says of them, so that the next one is elsewhere
                believed = np.array(running)
                surrogate = Surrogate(np.concatenate([x, believed]),
                                      np.concatenate([y, surrogate.predict(believed)[0]]))
            pool = self.rng.uniform(size=(2000, len(INPUTS)))
            point = pool[int(np.argmax(improvement(surrogate, pool, max(self.y))))]
        self.asked.append(point)
        return point, chosen

    def learn(self, point, chosen, value):
        self.x.append(point)
        self.y.append(value)
        (self.chosen if chosen else self.random).append(value)


def steer(samples, first):
    study = Study(first, samples)
    started = []
    with mpiflux.Executor(cores=1) as pool:
        slots = pool.flux.status()["cores"]
        waiting = {}

        def submit():
            point, chosen = study.choose()
            inputs = {name: low + (high - low) * value
                      for (name, (low, high)), value in zip(INPUTS.items(), point, strict=True)}
            future = pool.submit([sys.executable, __file__, "--run", json.dumps(inputs)], name="implosion")
            future.add_event_callback("start", lambda future, event: started.append(event.job))
            waiting[future] = (point, chosen)

        for _ in range(min(slots, samples)):
            submit()
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                point, chosen = waiting.pop(future)
                result = future.result()
                if not result.ok:
                    raise SystemExit(f"job {result.id} failed: {result.stderr}")
                study.learn(point, chosen, json.loads(result.stdout)["yield"])
                if len(study.asked) < samples:
                    submit()
    best = int(np.argmax(study.y))
    inputs = ", ".join(f"{name} {low + (high - low) * value:.3f}" for (name, (low, high)), value
                       in zip(INPUTS.items(), study.x[best], strict=True))
    print(f"{len(study.y)} samples, {len(started)} starts heard of; best log yield {study.y[best]:.3f} at {inputs}")
    random = max(study.random)
    print(f"best of {len(study.random)} random samples: {random:.3f}")
    if study.chosen:
        print(f"best of {len(study.chosen)} that the surrogate chose: {max(study.chosen):.3f}; "
              f"{sum(value > random for value in study.chosen)} of them are better than all random ones")
    return study


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--first", type=int, default=10, help="how many of them are random")
    parser.add_argument("--run", metavar="JSON", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run is not None:
        print(json.dumps({"yield": simulate(**json.loads(args.run))}))
    else:
        steer(args.samples, min(args.first, args.samples))


if __name__ == "__main__":
    main()
