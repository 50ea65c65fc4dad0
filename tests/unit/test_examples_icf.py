"""The example of docs/examples/icf_uq: the physics of its model, and the statistics of its surrogate."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / "icf_uq" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


icf, surrogate = load("icf"), load("surrogate")
QUICK = 1e-7
"""Step tolerance that gives log10(yield) to a few parts in a million."""


def box():
    workflow = yaml.safe_load((EXAMPLES / "icf_uq" / "workflow.yaml").read_text())
    return {name: column["lhs"][:2] for name, column in workflow["jobs"]["sim"]["parameters"].items()}


def cli(*args):
    return subprocess.run([sys.executable, "-S", "-I", str(EXAMPLES / "icf_uq" / "icf.py"), *args],
                          capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("t", "sigma_v"),
                         [(1.0, 6.857e-21), (2.0, 2.977e-19), (10.0, 1.136e-16), (20.0, 4.330e-16)])
def test_reactivity_is_that_of_bosch_and_hale_table_viii(t, sigma_v):
    assert icf.reactivity(t) == pytest.approx(sigma_v, rel=2e-3)


def test_alpha_deposition_is_continuous_and_rises_to_one():
    values = [icf.deposited(10 ** (e / 50), 5.0) for e in range(-200, 150)]
    assert all(b > a for a, b in pairwise(values))
    assert values[0] < 0.02 and 0.99 < values[-1] < 1.0
    assert max(b - a for a, b in pairwise(values)) < 0.02


def test_the_step_is_of_fifth_order():
    def rate(t, y):
        return [y[0] * math.cos(t)]

    def error(n):
        t, y, k = 0.0, [1.0], rate(0.0, [1.0])
        for _ in range(n):
            y, k, _ = icf.step(rate, t, y, k, 2.0 / n)
            t += 2.0 / n
        return abs(y[0] - math.exp(math.sin(2.0)))

    assert 4.7 < math.log2(error(20) / error(40)) < 5.5


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("inputs", [(320, 4.5, 120, 1.0), (380, 2.5, 200, 0.2), (420, 2.0, 220, 0.0)])
def test_energy_is_accounted_for(inputs, alpha):
    result = icf.simulate(*inputs, alpha_heating=alpha, rtol=1e-9)
    assert result["energy_drift"] < 1e-8
    assert result["steps"] < 5000


def test_hot_spot_energy_is_work_plus_alphas_less_radiation():
    implosion = icf.Implosion(3.8e7, 2.5, 2e-4, 2e-3)
    states = [y for _, y, _ in icf.integrate(implosion, 1e-8)]
    gain = states[-1][4] - states[0][4]
    assert gain == pytest.approx(states[-1][6] + states[-1][7] - states[-1][8], rel=1e-6)
    force = [4 * math.pi * y[0] ** 2 * implosion.plasma(y)[0] for y in states]
    pdv = sum(0.5 * (f + g) * (a[0] - b[0])
              for (a, f), (b, g) in pairwise(zip(states, force, strict=True)))
    assert pdv == pytest.approx(states[-1][6], rel=2e-2)


def test_tighter_tolerance_converges():
    exact = icf.simulate(360, 3.0, 180, 0.3)["log10_yield"]
    errors = [abs(icf.simulate(360, 3.0, 180, 0.3, rtol=r)["log10_yield"] - exact)
              for r in (1e-4, 1e-6, 1e-8)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


@pytest.mark.parametrize(("name", "sign"), [("velocity", 1), ("mass", 1), ("adiabat", -1), ("mix", -1)])
def test_yield_goes_the_right_way_with_each_input(name, sign):
    limits = box()
    middle = {key: 0.5 * (low + high) for key, (low, high) in limits.items()}
    low, high = limits[name]
    yields = [icf.simulate(**{**middle, name: low + (high - low) * i / 4}, rtol=QUICK)["yield"]
              for i in range(5)]
    assert all((b - a) * sign > 0 for a, b in pairwise(yields))


def test_carbon_radiates_by_the_square_of_its_charge():
    """One carbon in 100 ions, per DT pair: 2/99 carbons, six electrons and Z^2 = 36 each."""
    clean, dirty = icf.Implosion(3.8e7, 2.5, 2e-4, 0.0), icf.Implosion(3.8e7, 2.5, 2e-4, 0.01)
    state = clean.start()
    same = [*state[:4], state[4] * dirty.particles / clean.particles, *state[5:]]
    assert dirty.plasma(same)[1:] == pytest.approx(clean.plasma(state)[1:])
    carbon = 2 / 99
    expected = (2 + 6 * carbon) * (2 + 36 * carbon) / 4
    radiated = icf.FIELDS.index("radiated")
    assert dirty.rate(0.0, same)[radiated] / clean.rate(0.0, state)[radiated] == pytest.approx(expected)


def test_the_box_holds_duds_and_ignition():
    limits = box()
    velocity, adiabat, mass, mix = (limits[name] for name in ("velocity", "adiabat", "mass", "mix"))
    dud = icf.simulate(velocity[0], adiabat[1], mass[0], mix[1], rtol=QUICK)
    best = icf.simulate(velocity[1], adiabat[0], mass[1], mix[0], rtol=QUICK)
    assert dud["q_alpha"] < 0.5 and 2.0 < dud["t_ion"] < 5.0
    assert best["q_alpha"] > 10.0 and best["yield"] > 1000 * dud["yield"]
    assert best["burn_fraction"] < 0.5


def test_alpha_heating_makes_the_ignition():
    on, off = (icf.simulate(400, 2.5, 200, 0.2, alpha_heating=a, rtol=QUICK) for a in (True, False))
    assert on["yield"] > 50 * off["yield"]
    assert off["q_alpha"] == 0.0


def test_command_line_needs_no_package_and_prints_one_line():
    done = cli("--velocity", "350.5", "--adiabat", "3", "--mass", "150", "--mix", "0.25")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert (result["velocity"], result["adiabat"], result["mass"], result["mix"]) == (350.5, 3.0, 150.0, 0.25)
    assert result == icf.simulate(350.5, 3.0, 150.0, 0.25)


def test_help_names_the_units_of_every_output():
    text = cli("--help").stdout
    for key in icf.simulate(350, 3, 150, 0.2, rtol=QUICK):
        assert key in text
    assert "km/s" in text and "example" in text


@pytest.mark.parametrize("args", [["--velocity", "-5"], ["--adiabat", "nan"], ["--mass", "1e9"],
                                  ["--rtol", "0"]])
def test_absurd_input_is_refused(args):
    done = cli(*args)
    assert done.returncode == 2 and done.stdout == ""
    assert f"{args[0]} " in done.stderr.splitlines()[-1] and "outside" in done.stderr


def test_the_box_is_within_what_the_program_accepts():
    for name, (low, high) in box().items():
        assert icf.INPUTS[name][1] <= low < high <= icf.INPUTS[name][2]


def test_outputs_without_a_result_are_counted():
    good = json.dumps({"velocity": 1, "adiabat": 2, "mass": 3, "mix": 4, "yield": 1e16})
    texts = ["a warning\n" + good + "\n", None, "", "Traceback", good.replace("1e+16", "0"),
             good.replace("mix", "x")]
    with np.errstate(divide="ignore"):
        x, y, skipped = surrogate.parse_outputs(texts)
    assert x.tolist() == [[1, 2, 3, 4]] and y.tolist() == [16.0]
    assert skipped == 5
    assert surrogate.parse_outputs([])[0].shape == (0, 4)


def test_held_out_samples_are_never_trained_on():
    train, test = surrogate.split(101)
    assert sorted([*train, *test]) == list(range(101))
    assert len(test) == 20


def smooth(x):
    return 16 + np.tanh(3 * x[:, 0] - x[:, 1]) + 0.3 * x[:, 2]


def test_fit_learns_a_smooth_function_and_knows_where_it_knows():
    x = np.random.default_rng(1).uniform(-1, 1, (300, 4))
    model = surrogate.fit(x[:240], smooth(x[:240]))
    score = surrogate.errors(smooth(x[240:]), model.predict(x[240:]))
    assert score["r2"] > 0.99
    assert score["rmse"] <= score["max_error"]
    at_point, far = model.deviation(x[:1])[0], model.deviation(np.full((1, 4), 5.0))[0]
    assert at_point < 0.1 * far


def test_errors_of_the_mean_are_r2_zero():
    truth = np.array([1.0, 2.0, 6.0])
    score = surrogate.errors(truth, np.full(3, 3.0))
    assert score["r2"] == pytest.approx(0.0)
    assert score["rmse"] == pytest.approx(math.sqrt(14 / 3)) and score["max_error"] == 3.0


def test_an_input_that_does_not_vary_is_refused():
    with pytest.raises(ValueError, match="input 2 does not vary"):
        surrogate.fit(np.c_[np.arange(9.0), np.arange(9.0), np.ones(9), np.arange(9.0)], np.arange(9.0))


def test_sensitivities_of_a_linear_function_are_its_variances():
    class Linear:
        low, high = np.array([-1.0, 0.0, 10.0]), np.array([1.0, 1.0, 20.0])

        def predict(self, x):
            return 3.0 * x[:, 0] + 2.0 * x[:, 1]

    total = surrogate.sensitivities(Linear(), base=20000)
    assert total == pytest.approx([36 / 40, 4 / 40, 0.0], abs=0.03)


def test_text_plot_counts_every_sample():
    truth = np.linspace(15, 19, 7)
    text = surrogate.ascii_parity(truth, truth)
    assert sum(int(c) for line in text.splitlines()[1:-2] for c in line if c.isdigit()) == 7
    assert len({len(line) for line in text.splitlines()[1:-2]}) == 1


def test_ensemble_to_surrogate(tmp_path, capsys):
    rng = np.random.default_rng(3)
    limits = box()
    outputs = []
    for row in rng.random((100, 4)):
        inputs = {name: low + (high - low) * r
                  for r, (name, (low, high)) in zip(row, limits.items(), strict=True)}
        outputs.append(json.dumps(icf.simulate(**inputs, rtol=1e-6)) + "\n")
    x, y, skipped = surrogate.parse_outputs(outputs)
    image = tmp_path / "icf_uq.png"
    report = surrogate.analyse(x, y, skipped, image)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == report
    assert (report["samples"], report["held_out"], report["skipped"]) == (100, 20, 0)
    assert report["r2"] > 0.8
    assert max(report["sensitivity"], key=report["sensitivity"].get) == "velocity"
    if report["plot"]:
        assert image.read_bytes().startswith(b"\x89PNG")


def test_small_examples_are_small():
    quick = (EXAMPLES / "quickstart.yaml").read_text()
    assert len(quick.splitlines()) <= 12
    jobs = yaml.safe_load(quick)["jobs"]
    assert any("after" in job for job in jobs.values())
    assert any(len(job.get("parameters", {})) == 2 for job in jobs.values())
    stress = yaml.safe_load((EXAMPLES / "stress.yaml").read_text())
    assert stress["variables"] == {"n": 1000}
    assert stress["jobs"]["noop"]["parameters"] == {"i": {"range": "${n}"}}
