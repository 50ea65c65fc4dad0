#!/usr/bin/env python3
"""Hot spot of an inertial-confinement-fusion implosion, from the start of deceleration to disassembly.

A semi-analytical model: a uniform deuterium-tritium hot spot is compressed by an imploding spherical shell,
heated by that work and by its own alpha particles, and cooled by radiation and by the mass that heat
conduction ablates from the shell. It answers in about a tenth of a second what a radiation-hydrodynamics
code answers in hours, with the trends right and the absolute numbers approximate.

State, CGS units, temperatures in keV: hot-spot radius R, velocity u = dR/dt, mass m and internal energy E,
the Lagrangian place x of the return shock in the shell, and running integrals.

    dR/dt = u
    M_s du/dt = 4 pi R^2 (P - P_c) - (dM_s/dt) w,  w = V + u          momentum of the shocked shell [1, 2]
    dx/dt = w (g + 1)/4 + sqrt((w (g + 1)/4)^2 + c^2),  g = 5/3       return shock, Rankine-Hugoniot
    dE/dt = -4 pi R^2 P u + Q_a - Q_b,  E = 3/2 P (4/3 pi R^3)        energy of the hot spot [1, 2]
    dm/dt = (Q_c + (1 - f) Q_a) / (5/2 P / rho)                       ablation from the shell [1]

The shell flies inward at V; only the part M_s(x) that the return shock has passed decelerates, the rest
(density falling to zero at the outer surface, pressure P_c and sound speed c on the fuel's adiabat) does
not know yet. A low adiabat makes a thin, dense shell that acts as one: high pressure. Conduction Q_c is an
energy loss of the hot spot that the matter it ablates brings back [1]: it lowers the temperature, not the
pressure. So do the alpha particles that leave, the part 1 - f. Both are scaled by the shell still to be
ablated, 1 - m/M; what then leaves is lost. Q_a is the alpha power [3], f the part deposited in the hot spot
[4, 5], Q_b bremsstrahlung [6], raised by carbon from the ablator that is mixed into the hot spot as in [7],
Q_c Spitzer conduction [5]. Left out: shape asymmetry, absorption of radiation, differences of ion and
electron temperature, the inertia that the shell loses to ablation.

[1] R. Betti et al., Deceleration phase of inertial confinement fusion implosions, Phys. Plasmas 9, 2277
    (2002).
[2] R. Betti et al., Thermonuclear ignition in inertial confinement fusion and comparison with magnetic
    confinement, Phys. Plasmas 17, 058102 (2010).
[3] H.-S. Bosch, G. M. Hale, Improved formulas for fusion cross-sections and thermal reactivities, Nucl.
    Fusion 32, 611 (1992).
[4] O. N. Krokhin, V. B. Rozanov, Escape of alpha particles from a laser-pulse-initiated thermonuclear
    reaction, Sov. J. Quantum Electron. 2, 393 (1973).
[5] S. Atzeni, J. Meyer-ter-Vehn, The Physics of Inertial Fusion, Oxford University Press (2004), chapter 4.
[6] J. D. Huba, NRL Plasma Formulary, Naval Research Laboratory.
[7] P. T. Springer et al., A 3D dynamic model to assess the impacts of low-mode asymmetry, aneurysms and
    mix-induced radiative loss on capsule performance, Nucl. Fusion 59, 032009 (2019).

Needs the standard library only: an ensemble starts this program thousands of times.
"""

from __future__ import annotations

import sys
from math import exp, log, log10, pi, sqrt

KEV = 1.602177e-9
"""erg per keV."""
AMU = 1.660539e-24
PAIR = (2.014102 + 3.016049) * AMU
"""Mass of one deuteron and one triton with their electrons, g."""
E_ALPHA = 3.5e3 * KEV
E_FUSION = 17.6e3 * KEV
GAMMA = 5.0 / 3.0
FERMI = 2.18e12
"""Pressure of cold DT at 1 g/cm^3, dyn/cm^2: P = FERMI adiabat rho^(5/3)."""

R_START = 0.0250
"""Inner radius of the shell where deceleration begins, cm."""
P_START = 40.0e12
"""Pressure there, of hot spot and inner shell alike, dyn/cm^2."""
T_START = 1.0
"""Hot-spot temperature there, keV."""
CO_MOVING = 0.02
"""Share of the shell behind the return shock at the start: the shock must have something to push."""
BURN_END = 1e-4
"""The run ends when the reaction rate has fallen to this part of its peak."""
COLDEST = 0.01
"""keV. Nothing burns or conducts here; trial steps that overshoot stay defined."""

FIELDS = ("R", "u", "x", "m", "E", "pairs", "work", "alpha", "radiated", "heated", "tburn")
"""The state vector. ``pairs`` is the number of DT reactions, ``work`` the PdV work done on the hot spot,
``alpha`` and ``radiated`` energies gained and lost, ``heated`` the internal energy of the shell, all erg;
``tburn`` the integral of T d(pairs)."""


def reactivity(t: float) -> float:
    """Maxwell-averaged <sigma v> of D(t,n)alpha, cm^3/s, at ``t`` keV [3], valid 0.2 to 100."""
    t = min(max(t, 0.2), 100.0)
    theta = t / (1.0 - t * (1.51361e-2 + t * (4.60643e-3 - t * 1.0675e-4))
                 / (1.0 + t * (7.51886e-2 + t * (1.35e-2 + t * 1.366e-5))))
    xi = (34.3827 ** 2 / (4.0 * theta)) ** (1.0 / 3.0)
    return 1.17302e-9 * theta * sqrt(xi / (1124656.0 * t ** 3)) * exp(-3.0 * xi)


def deposited(rho_r: float, t: float) -> float:
    """Part of the alpha energy left in a sphere of areal density ``rho_r`` (g/cm^2) at ``t`` keV [4, 5]."""
    s = t ** 1.25
    tau = rho_r * (1.0 + 0.0082 * s) / (0.025 * s)
    if tau <= 0.5:
        return tau * (1.5 - 0.8 * tau)
    return 1.0 - 0.25 / tau + 0.00625 / tau ** 3


class Implosion:
    """One implosion. Units: ``velocity`` cm/s, ``mass`` g, ``adiabat`` a multiple of the Fermi pressure,
    ``mix`` carbon atoms per hot-spot ion. ``alpha_heating`` False lets the alphas' energy vanish."""

    def __init__(self, velocity: float, adiabat: float, mass: float, mix: float,
                 alpha_heating: bool = True) -> None:
        self.v, self.adiabat, self.mass = velocity, adiabat, mass
        self.alpha_on = 1.0 if alpha_heating else 0.0
        carbon = mix / (1.0 - mix) * 2.0
        self.electrons = 2.0 + 6.0 * carbon
        """Electrons a DT pair."""
        self.particles = 2.0 + carbon + self.electrons
        self.z2 = 2.0 + 36.0 * carbon
        """Sum of squared ion charges a DT pair."""
        density = (P_START / (FERMI * adiabat)) ** 0.6
        self.thickness = 1.5 * mass / (4.0 * pi * R_START ** 2 * density)

    def start(self) -> list[float]:
        """The state at the beginning of deceleration."""
        volume = 4.0 / 3.0 * pi * R_START ** 3
        pairs = P_START * volume / (self.particles * T_START * KEV)
        x = R_START + self.thickness * CO_MOVING / 1.5
        return [R_START, -self.v, x, pairs * PAIR, 1.5 * P_START * volume, *[0.0] * (len(FIELDS) - 5)]

    def shell(self, x: float, t: float) -> tuple[float, float, float, float]:
        """Shocked mass, dM_s/dx, and the density and cold pressure just ahead of the shock."""
        s = (x - R_START) / self.thickness
        if s >= 1.0:
            return self.mass, 0.0, 0.0, 0.0
        slope = 1.5 * self.mass / self.thickness * (1.0 - s * s)
        density = slope / (4.0 * pi * (x - self.v * t) ** 2)
        return self.mass * s * (1.5 - 0.5 * s * s), slope, density, FERMI * self.adiabat * density ** GAMMA

    def plasma(self, y: list[float]) -> tuple[float, float, float, float]:
        """Pressure (dyn/cm^2), temperature (keV), DT density (g/cm^3) and volume (cm^3) of the hot spot."""
        volume = 4.0 / 3.0 * pi * y[0] ** 3
        pressure = y[4] / (1.5 * volume)
        return pressure, y[4] * PAIR / (1.5 * self.particles * y[3] * KEV), y[3] / volume, volume

    def rate(self, t: float, y: list[float]) -> list[float]:
        """Time derivative of the state."""
        r, u, x, m = y[:4]
        pressure, temp, rho, volume = self.plasma(y)
        temp = max(temp, COLDEST)
        area = 4.0 * pi * r * r

        m_shock, slope, ahead, cold = self.shell(x, t)
        w = self.v + u
        a = w * (GAMMA + 1.0) / 4.0
        speed = a + sqrt(a * a + (GAMMA * cold / ahead if ahead else 0.0))
        m_rate = slope * speed
        push = area * (pressure - cold)

        n = rho / PAIR
        burn_n = max(n - y[5] / volume, 0.0)
        burn = burn_n * burn_n * reactivity(temp) * volume
        q_alpha = burn * E_ALPHA * self.alpha_on
        f = deposited(rho * r, temp)
        n_e = n * self.electrons
        q_brems = 1.69e-25 * n_e * n * self.z2 * sqrt(1000.0 * temp) * volume
        coulomb = max(24.0 - log(sqrt(n_e) / (1000.0 * temp)), 1.0)
        q_cond = 4.0 * pi * r * 9.5e19 * temp ** 3.5 / coulomb
        left = max(1.0 - m / self.mass, 0.0)
        ablated = left * (q_cond + (1.0 - f) * q_alpha) * rho / (2.5 * pressure)

        work = -area * pressure * u
        gained = q_alpha * (f + (1.0 - f) * left)
        heated = 0.5 * m_rate * w * w + area * cold * u
        return [u, (push - m_rate * w) / m_shock, speed if slope else 0.0, ablated,
                work + gained - q_brems, burn, work, gained, q_brems, heated, temp * burn]

    def energy(self, t: float, y: list[float]) -> float:
        """What must not change, erg: kinetic and internal energy of shell and hot spot, plus radiation, less
        alpha heating."""
        m_shock = self.shell(y[2], t)[0]
        kinetic = 0.5 * m_shock * y[1] ** 2 + 0.5 * (self.mass - m_shock) * self.v ** 2
        return kinetic + y[9] + y[4] + y[8] - y[7]


# Dormand and Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl. Math. 6, 19 (1980).
_C = (0.2, 0.3, 0.8, 8 / 9, 1.0, 1.0)
_A = ((0.2,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9),
      (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
      (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
      (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84))
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def step(rate, t: float, y: list[float], k1: list[float], h: float) -> tuple[list[float], ...]:
    """One step of order 5: the new state, its derivative, and the estimated error of each component."""
    ks = [k1]
    new = y
    for c, row in zip(_C, _A, strict=True):
        new = list(y)
        for a, k in zip(row, ks, strict=True):
            ah = a * h
            new = [v + ah * d for v, d in zip(new, k, strict=True)]
        ks.append(rate(t + c * h, new))
    error = [h * sum(e * d for e, d in zip(_ERROR, column, strict=True)) for column in zip(*ks, strict=True)]
    return new, ks[-1], error


def integrate(implosion: Implosion, rtol: float = 1e-12):
    """Yield (time in s, state, its derivative) after every accepted step, until the burn has fallen to
    ``BURN_END`` of its peak. Raises ArithmeticError when the step size underflows."""
    t, y = 0.0, implosion.start()
    scale = [abs(v) for v in y]
    scale[5:] = [1e12, y[4], y[4], y[4], y[4], 1e12]
    k, h, peak = implosion.rate(t, y), 1e-13, 0.0
    yield t, y, k
    while k[5] > BURN_END * peak:
        new, k_new, error = step(implosion.rate, t, y, k, h)
        worst = max(abs(e) / (rtol * max(abs(v), 1e-3 * s))
                    for e, v, s in zip(error, new, scale, strict=True))
        if worst <= 1.0:
            t, y, k = t + h, new, k_new
            peak = max(peak, k[5])
            yield t, y, k
        h *= min(4.0, max(0.2, 0.9 * (worst + 1e-12) ** -0.2))
        if h < 1e-22:
            raise ArithmeticError(f"step size underflow at t = {t:.3e} s")


def simulate(velocity: float, adiabat: float, mass: float, mix: float, alpha_heating: bool = True,
             rtol: float = 1e-12) -> dict[str, object]:
    """Run one implosion. ``velocity`` km/s, ``mass`` micrograms of shell, ``mix`` per cent carbon atoms; see
    :data:`HELP` for the units of what is returned."""
    implosion = Implosion(velocity * 1e5, adiabat, mass * 1e-6, mix * 1e-2, alpha_heating)
    peak_p, peak_rate, t_bang, hottest = 0.0, 0.0, 0.0, 0.0
    smallest, most_work, rho_r, first, drift = 1e9, 0.0, 0.0, 0.0, 0.0
    y: list[float] = []
    for steps, (t, y, k) in enumerate(integrate(implosion, rtol)):  # noqa: B007
        pressure, temp, rho, _ = implosion.plasma(y)
        peak_p, hottest, rho_r = max(peak_p, pressure), max(hottest, temp), max(rho_r, rho * y[0])
        smallest, most_work = min(smallest, y[0]), max(most_work, y[6])
        if k[5] > peak_rate:
            peak_rate, t_bang = k[5], t
        energy = implosion.energy(t, y)
        first = first or energy
        drift = max(drift, abs(energy / first - 1.0))
    neutrons = y[5]
    return {
        "velocity": velocity, "adiabat": adiabat, "mass": mass, "mix": mix, "yield": neutrons,
        "log10_yield": log10(neutrons), "yield_kj": neutrons * E_FUSION * 1e-10,
        "t_ion": y[10] / neutrons, "t_max": hottest, "p_max": peak_p * 1e-15, "r_min": smallest * 1e4,
        "rho_r": rho_r, "t_bang": t_bang * 1e9, "burn_width": neutrons / peak_rate * 1e12,
        "q_alpha": y[7] / most_work, "burn_fraction": neutrons * PAIR / implosion.mass,
        "steps": steps, "energy_drift": drift,
    }


HELP = """\
output, one line of JSON:
  yield          DT neutrons                       log10_yield   its decimal logarithm
  yield_kj       fusion energy, kJ                 t_ion         burn-averaged temperature, keV
  t_max          highest temperature, keV          p_max         highest pressure, Gbar
  r_min          least radius, micrometres         rho_r         highest areal density of the hot spot, g/cm^2
  t_bang         time of peak burn from the start  burn_width    yield over peak burn rate, ps
                 of deceleration, ns               q_alpha       alpha energy over compression work; > 1 burns
  burn_fraction  of the shell's DT                 steps         integration steps
  energy_drift   relative error of the energy balance

example:
  python icf.py --velocity 400 --adiabat 2.5 --mass 200 --mix 0.2
"""

INPUTS = {
    "velocity": (380.0, 100.0, 1000.0, "implosion velocity, km/s"),
    "adiabat": (2.5, 1.0, 20.0, "shell pressure over the Fermi pressure of DT"),
    "mass": (200.0, 10.0, 5000.0, "imploding shell, micrograms of DT"),
    "mix": (0.2, 0.0, 5.0, "carbon in the hot spot, per cent of its ions"),
}
"""Name: default, least and greatest accepted value, meaning."""


def main(argv: list[str] | None = None) -> int:
    import argparse
    import json

    parser = argparse.ArgumentParser(description="Stagnation of an inertial-confinement-fusion hot spot.",
                                     epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, low, high, text) in INPUTS.items():
        parser.add_argument(f"--{name}", type=float, default=default,
                            help=f"{text} ({low:g} to {high:g}, default {default:g})")
    parser.add_argument("--no-alpha", action="store_true", help="switch alpha heating off")
    parser.add_argument("--rtol", type=float, default=1e-12,
                        help="relative tolerance of a step (default 1e-12)")
    args = parser.parse_args(argv)
    values = {name: getattr(args, name) for name in INPUTS}
    for name, (_, low, high, _) in INPUTS.items():
        if not low <= values[name] <= high:
            parser.error(f"--{name} {values[name]:g} is outside {low:g} to {high:g}")
    if not 1e-14 <= args.rtol <= 1e-2:
        parser.error(f"--rtol {args.rtol:g} is outside 1e-14 to 1e-2")
    print(json.dumps(simulate(**values, alpha_heating=not args.no_alpha, rtol=args.rtol)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
