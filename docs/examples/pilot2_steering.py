#!/usr/bin/env python3
"""A multiscale simulation steered while it runs, as in the Pilot2 project: protein patches on a cell membrane.

Three kinds of programs work on one instance, and none of them writes a file to talk to another:

- the *continuum model*, a job: a lipid field on a grid, by the Allen-Cahn equation; it publishes a patch around each of
  its proteins every few steps, and takes up what molecular dynamics says of the coupling between protein and lipids;
- the *selector*, this program's own process: ranks the patches by how unlike they are to those simulated so far, and
  starts the most unusual one as soon as a slot is free;
- *MD jobs*, one a patch: Langevin dynamics of beads in the patch's field, which stream their analysis through the
  key-value store while they run, and give a measured coupling at their end.

    mpiflux start -- python pilot2_steering.py --patches 8

Every number is computed by a small but real model; nothing sleeps for the sake of it. After H. I. Ingólfsson et al.,
Machine learning-driven multiscale modeling reveals lipid-dependent dynamics of RAS signaling proteins, PNAS 119 (2022),
and F. Di Natale et al., A massively parallel infrastructure for adaptive multiscale simulations, SC '19.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

import mpiflux

GRID, PROTEINS, PATCH = 48, 6, 8
"""Cells along a side of the membrane, proteins on it, cells along a side of a patch."""
COUPLING = 0.8
"""What the continuum model begins with; molecular dynamics knows better."""


# -- the continuum model -----------------------------------------------------------------------------------------------


def laplacian(u):
    return sum(np.roll(u, shift, axis) for shift in (1, -1) for axis in (0, 1)) - 4 * u


def around(u, x, y):
    """The patch of a field around a protein, over the edges."""
    rows, columns = (np.arange(PATCH) + int(x) - PATCH // 2) % GRID, (np.arange(PATCH) + int(y) - PATCH // 2) % GRID
    return u[np.ix_(rows, columns)]


def continuum(flux):
    """Run until told to stop; a patch of each protein every few steps."""
    rng = np.random.default_rng(1)
    field = 0.1 * rng.standard_normal((GRID, GRID))
    places = rng.uniform(0, GRID, (PROTEINS, 2))
    state = {"coupling": COUPLING, "updates": 0}
    feedback = flux.kvs.watch("feedback.coupling")
    patches, step, number = flux.queue("patches"), 0, 0
    while True:
        for _ in range(10):
            source = np.zeros_like(field)
            cells = places.astype(int) % GRID
            np.add.at(source, (cells[:, 0], cells[:, 1]), state["coupling"])
            field += 0.1 * (laplacian(field) + field - field**3 + source)
            places = (places + 0.3 * rng.standard_normal(places.shape)) % GRID
            step += 1
        for x, y in places:
            patches.push({"number": number, "step": step, "coupling": state["coupling"],
                          "field": around(field, x, y).round(4).tolist()})
            number += 1
        try:
            change = feedback.get(0.05)      # also what keeps the model from running far ahead
        except TimeoutError:
            continue
        if change is None or change.value is None:
            break
        state = {"coupling": change.value, "updates": state["updates"] + 1}
        print(f"step {step}: coupling is {change.value:.3f} now", flush=True)
        flux.kvs.put("continuum", {"step": step, **state})


# -- molecular dynamics ------------------------------------------------------------------------------------------------


def dynamics(flux, number, seconds, every):
    """Langevin dynamics of beads bound to the lipids of one patch; analysis every ``every`` seconds."""
    patch = flux.kvs.get(f"selected.{number}")
    field, job = np.array(patch["field"]), flux.job()
    rng = np.random.default_rng(number)
    beads = rng.uniform(0, PATCH, (64, 2))
    gx, gy = np.gradient(field)
    begin = told = time.monotonic()
    steps, contact, frames = 0, 0.0, []
    while time.monotonic() - begin < seconds:
        for _ in range(50):
            cells = tuple(beads.astype(int).T % PATCH)
            force = np.stack([gx[cells], gy[cells]], axis=1)
            beads = (beads + 0.02 * force + 0.1 * rng.standard_normal(beads.shape)) % PATCH
            contact += float(field[cells].mean())
            steps += 1
        now = time.monotonic()
        if now - told >= every:
            told = now
            frames.append(contact / steps)
            job.kvs.put(f"frame.{len(frames)}", {"steps": steps, "contact": contact / steps})
    enriched = contact / steps - float(field.mean())
    # what the continuum should use so that its field and the beads' agree
    job.kvs.put("result", {"coupling": float(np.clip(COUPLING + 20 * enriched, 0.05, 2.0)), "steps": steps,
                           "frames": len(frames)})
    print(f"patch {number}: {steps} steps, {len(frames)} frames, enrichment {enriched:+.4f}")


# -- the selector ------------------------------------------------------------------------------------------------------


def features(patch):
    """What patches are compared by: rotations of a patch are the same to it."""
    spectrum = np.abs(np.fft.fft2(np.array(patch["field"])))
    return np.concatenate([np.sort(spectrum.ravel())[-12:], [spectrum[0, 0]]])


class Selector:
    """Candidates by novelty: the distance to the nearest patch that was simulated."""

    def __init__(self):
        self.candidates, self.done = [], []

    def add(self, patch):
        self.candidates.append((patch, features(patch)))
        self.candidates = self.candidates[-200:]

    def novelty(self, vector):
        return min((float(np.linalg.norm(vector - one)) for one in self.done), default=np.inf)

    def most_unusual(self):
        best = max(range(len(self.candidates)), key=lambda i: self.novelty(self.candidates[i][1]))
        patch, vector = self.candidates.pop(best)
        novelty = self.novelty(vector)
        self.done.append(vector)
        return patch, novelty


def select(flux, wanted, seconds, every):
    me = [sys.executable, __file__]
    slots = max(1, flux.status()["cores"] - 1)
    model = flux.submit([*me, "continuum"], name="continuum")
    patches, selector, running, frames = flux.queue("patches"), Selector(), {}, 0
    events = flux.events(names=("clean",), since=-1)
    started, couplings, chosen = 0, [], []
    while len(couplings) < wanted:
        while len(patches):
            selector.add(patches.pull())
        if started < wanted and len(running) < slots:
            while not selector.candidates:
                selector.add(patches.pull(timeout=60))
            patch, novelty = selector.most_unusual()
            number = patch["number"]
            flux.kvs.put(f"selected.{number}", patch)
            job = flux.submit([*me, "md", str(number), str(seconds), str(every)], name="md")
            running[job.id] = job
            started += 1
            chosen.append(novelty)
            continue
        ended = events.get(timeout=120).job
        job = running.pop(ended, None)
        if job is None:
            if ended == model.id:
                raise SystemExit(f"the continuum model has ended: {model.result().stderr}")
            continue
        if not job.record().ok:
            raise SystemExit(f"MD job {job.id} failed: {job.result().stderr}")
        result = job.kvs.get("result")
        frames += len(job.kvs.ls("frame"))
        couplings.append(result["coupling"])
        # the feedback: the model takes it up while it runs
        flux.kvs.put("feedback.coupling", float(np.mean(couplings)))
    while flux.kvs.wait("continuum", timeout=60)["updates"] < 1:
        time.sleep(0.05)
    state = flux.kvs.get("continuum")
    flux.kvs.put("feedback.coupling", None)
    if not model.result(60).ok:
        raise SystemExit(model.result().stderr)
    print(f"{wanted} patches of {len(selector.candidates) + wanted} candidates simulated, {frames} analyses streamed; "
          f"coupling {COUPLING} -> {state['coupling']:.3f} after {state['updates']} updates at step {state['step']}")
    print("novelty of the first five:", " ".join(f"{one:.2f}" for one in chosen[1:6]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("role", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--patches", type=int, default=8, help="MD simulations in all")
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each runs")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two analyses")
    args = parser.parse_args()
    with mpiflux.connect() as flux:
        if args.role[:1] == ["continuum"]:
            continuum(flux)
        elif args.role[:1] == ["md"]:
            dynamics(flux, int(args.role[1]), float(args.role[2]), float(args.role[3]))
        else:
            select(flux, args.patches, args.seconds, args.every)


if __name__ == "__main__":
    main()
