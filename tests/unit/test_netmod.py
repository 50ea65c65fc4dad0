"""MPICH's network code: libfabric where ranks on other hosts are to be survived, and nowhere else."""

from __future__ import annotations

import pytest

from mpiflux.instance.launcher import Launcher
from mpiflux.instance.netmod import has_both, surviving_network

WHEEL = "MPICH Version:      5.0.2\nMPICH Device:       ch4:ucx ofi\nMPICH configure:    --with-device=ch4:ucx,ofi\n"
APART = Launcher("mpiflux", 1, 4, 0, 1)


@pytest.mark.parametrize("text, both", [
    (WHEEL, True), ("MPICH Device:\tch4:ucx,ofi", True), ("MPICH Device: ch4:ucx", False),
    ("MPICH Device: ch4:ofi", False), ("MPICH Device: ch3:nemesis", False), ("Open MPI v5.0.11, package: …", False),
    ("Intel(R) MPI Library 2021.18 for Linux* OS", False), ("", False)])
def test_what_a_library_was_built_with(text: str, both: bool) -> None:
    assert has_both(text) is both


def test_our_own_ranks_on_several_hosts_take_libfabric_and_jobs_do_not() -> None:
    environ = {"A": "b"}
    with surviving_network(APART, WHEEL, environ):
        assert environ == {"A": "b", "MPIR_CVAR_CH4_NETMOD": "ofi"}
    assert environ == {"A": "b"}


@pytest.mark.parametrize("launcher, library, environ", [
    (Launcher("mpiflux", 1, 4, 1, 4), WHEEL, {}), (Launcher("slurm", 1, 4, 0, 1), WHEEL, {}),
    (APART, WHEEL.replace(" ofi", ""), {}), (APART, WHEEL, {"UCX_NET_DEVICES": "eth0"}),
    (APART, WHEEL, {"MPIR_CVAR_CH4_NETMOD": "ucx"})],
    ids=["one host", "another launcher", "no choice", "a device is named", "chosen"])
def test_all_else_is_left_alone(launcher: Launcher, library: str, environ: dict[str, str]) -> None:
    before = dict(environ)
    with surviving_network(launcher, library, environ):
        assert environ == before
    assert environ == before
