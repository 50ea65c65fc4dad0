"""Who started us, from recorded environments."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpiflux.instance.launcher import KINDS, Launcher, detect, expand_counts, left_out, library_name, mismatch, unsuited
from mpiflux.model.environment import clean_environment
from mpiflux.node.pmi import rank_variables
from tests.unit import recorded_environments as recorded

MPICH = "MPICH Version:      5.0.2\nMPICH Release date: …"
OPENMPI = "Open MPI v5.0.11, package: Open MPI …"
INTEL = "Intel(R) MPI Library 2021.18 for Linux* OS"


@pytest.mark.parametrize("environ, expected", [
    (recorded.HYDRA, Launcher("hydra", 1, 2, 1, 2, None, True)),
    (recorded.INTEL, Launcher("hydra", 1, 2, 1, 2, None, True)),
    (recorded.OPENMPI, Launcher("openmpi", 1, 2, 1, 2, None, True, pmix=True)),
    (recorded.SLURM_NONE, Launcher("slurm", 2, 3, 0, 1, "n1", False)),
    (recorded.SLURM_PMI2, Launcher("slurm", 2, 3, 0, 1, "n1", True)),
    (recorded.SLURM_PMIX, Launcher("slurm", 2, 3, 0, 1, "n1", True, pmix=True)),
    (recorded.SLURM_BATCH, Launcher("none", node_name="n0")),
    (recorded.SLURM_HYDRA, Launcher("hydra", 6, 8, 2, 4, "n1", True)),
    (recorded.JSM, Launcher("jsm", 5, 12, 1, 4, None, True, pmix=True)),
    (recorded.PALS, Launcher("pals", 3, 4, 1, 2, None, True)),
    (recorded.FLUX, Launcher("flux", 4, 6, 1, None, None, True)),
    (rank_variables(9, 2, 8, 1, 4), Launcher("mpiflux", 2, 8, 1, 4, None, True)),
    ({"PRTE_LAUNCHED": "1", "PMIX_RANK": "3", "PMIX_NAMESPACE": "prterun-h-1@1"},
     Launcher("prrte", 3, has_pmi=True, pmix=True)),
    ({}, Launcher("none")),
])
def test_recorded(environ, expected):
    assert detect(environ) == expected


@pytest.mark.parametrize("name", [n for n in recorded.ALL if n not in ("slurm-batch",)])
def test_the_inner_launcher_is_told(name):
    """A launcher started in an mpiflux job, or inside a batch script, is the one that counts."""
    inner = detect(recorded.ALL[name])
    in_job = detect({**rank_variables(9, 0, 2, 0, 2), **recorded.ALL[name]})
    assert in_job[:6] == inner[:6]
    in_batch = detect({**recorded.SLURM_BATCH, **recorded.ALL[name]})
    assert (in_batch.kind, in_batch.rank, in_batch.size) == (inner.kind, inner.rank, inner.size)


@pytest.mark.parametrize("outer", recorded.ALL)
def test_our_own_ranks_are_told_under_any_launcher(outer):
    environ = {**clean_environment(recorded.ALL[outer]), **rank_variables(9, 1, 2, 1, 2)}
    assert detect(environ) == Launcher("mpiflux", 1, 2, 1, 2, None, True)


@pytest.mark.parametrize("step", ["4294967290", "4294967291", "4294967292", "batch", ""])
def test_slurms_own_steps_are_no_launch(step):
    assert detect({**recorded.SLURM_NONE, "SLURM_STEP_ID": step, "SLURM_STEPID": step}).kind == "none"


def test_hydra_hands_its_own_node_name_on():
    """mpiexec in a batch script that reaches the other nodes by ssh gives them the first node's variables."""
    assert detect({**recorded.SLURM_BATCH, **recorded.HYDRA}).node_name is None


@pytest.mark.parametrize("text, end", [("1700000000", 1700000000.0), ("", None), ("0", None), ("soon", None)])
def test_end_of_the_job(text, end):
    assert detect({**recorded.SLURM_NONE, "SLURM_JOB_END_TIME": text}).job_end_time == end
    assert detect({**recorded.SLURM_BATCH, "SLURM_JOB_END_TIME": text}).job_end_time == end


@pytest.mark.parametrize("text, counts", [
    ("2(x3),1", [2, 2, 2, 1]), ("4", [4]), ("1(x2)", [1, 1]), ("", []), ("x", []), ("2(x", []),
    ("1(x99999999999)", []),
])
def test_counts(text, counts):
    assert expand_counts(text) == counts


_names = sorted({name for environ in recorded.ALL.values() for name in environ}
                | set(rank_variables(1, 0, 1, 0, 1)) | {"SLURM_JOB_END_TIME", "PMI_PORT"})


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(_names), st.one_of(st.text(max_size=6), st.integers().map(str),
                                                          st.sampled_from(["²", "2(x²)", "9" * 5000]))))
def test_no_environment_raises(environ):
    found = detect(environ)
    assert found.kind in KINDS and (found.rank is None or found.rank >= 0)


# -- mismatch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environ, library, words", [
    (recorded.SLURM_PMIX, MPICH, ["Slurm started 3 ranks", "MPI world of 1", "MPICH 5.0.2 does not",
                                  "srun --mpi=pmi2"]),
    (recorded.SLURM_NONE, INTEL, ["srun --mpi=pmi2"]),
    (recorded.SLURM_PMI2, OPENMPI, ["srun --mpi=pmix", "its own mpiexec"]),
    (recorded.SLURM_NONE, "MPI VERSION : CRAY MPICH version 8.1", ["--mpi=cray_shasta"]),
    (recorded.HYDRA, OPENMPI, ["MPICH's mpiexec started 2", "mpiexec that belongs to Open MPI", "mpiflux[mpich]"]),
    (recorded.OPENMPI, MPICH, ["Open MPI's mpiexec started 2", "mpiflux[openmpi]"]),
    (rank_variables(9, 0, 4, 0, 4), OPENMPI, ["PMI-1", "mpiflux[mpich]", "mpiexec -n 4 mpiflux"]),
    (recorded.FLUX, OPENMPI, ["flux run -o pmi=pmix"]),
    (recorded.JSM, MPICH, ["jsrun started 12", "Spectrum MPI"]),
    (recorded.PALS, "", ["the MPI library", "the mpiexec that belongs"]),
])
def test_a_mismatch_is_one_line_with_what_mends_it(environ, library, words):
    line = mismatch(detect(environ), 1, library)
    assert line is not None and "\n" not in line
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize("environ", recorded.ALL.values(), ids=recorded.ALL)
def test_no_mismatch_where_sizes_agree_or_nobody_says(environ):
    launcher = detect(environ)
    assert mismatch(launcher, launcher.size or 1, MPICH) is None
    assert mismatch(Launcher("prrte", 3), 1, MPICH) is None


@pytest.mark.parametrize("text, name", [
    (MPICH, "MPICH 5.0.2"), (OPENMPI, "Open MPI v5.0.11"), (INTEL, "Intel(R) MPI Library 2021.18"),
    ("MPI VERSION    : CRAY MPICH version 8.1.28.2 (ANL base 3.4a2)", "CRAY MPICH 8.1.28.2"),
    ("IBM Spectrum MPI 10.4.0.3 (Open MPI)", "IBM Spectrum MPI 10.4.0.3"), ("odd", "odd"), ("", "the MPI library")])
def test_the_name_of_a_library(text: str, name: str) -> None:
    assert library_name(text) == name


_MPICH_5 = "MPICH Version:      5.0.2\nMPICH Device:       ch4:ucx ofi\nMPICH configure:    --with-device=ch4:ucx,ofi"


@pytest.mark.parametrize(("environ", "words"), [
    (recorded.SLURM_PMIX, ["Slurm starts its ranks by PMIx", "this MPICH 5.0.2 was not built for", "srun --mpi=pmi2"]),
    (recorded.OPENMPI, ["Open MPI's mpiexec", "the mpiexec that belongs to this library", "mpiflux[openmpi]"]),
    (recorded.JSM, ["jsrun", "Spectrum MPI"]),
])
def test_mpich_under_pmix_is_told_before_its_mpi_init_aborts(environ, words):
    line = unsuited(detect(environ), _MPICH_5)
    assert line is not None and "\n" not in line
    assert [word for word in words if word not in line] == []


def test_libraries_that_can_be_initialised_are_not_refused():
    assert unsuited(detect(recorded.SLURM_PMIX), _MPICH_5 + " --with-pmix=/usr") is None, "it was built for PMIx"
    assert unsuited(detect(recorded.SLURM_PMIX), OPENMPI) is None
    for environ in (recorded.SLURM_PMI2, recorded.HYDRA, {**recorded.HYDRA, "PMIX_NAMESPACE": "outer"}):
        assert unsuited(detect(environ), _MPICH_5) is None


def test_batch_scripts_are_nobody_s_ranks_and_inside_them_launchers_are_told():
    for batch in (recorded.LSF_BATCH, recorded.PBS_BATCH):
        assert detect(batch) == Launcher("none")
    assert detect({**recorded.LSF_BATCH, **recorded.JSM})[:2] == ("jsm", 5)
    assert detect({**recorded.PBS_BATCH, **recorded.PALS})[:2] == ("pals", 3)


@pytest.mark.parametrize(("environ", "words"), [
    (recorded.LSF_BATCH, ["LSF's job 331211", "3 hosts", "launch node", "jsrun"]),
    (recorded.SLURM_BATCH, ["Slurm's job 1", "2 nodes", "srun -N2"]),
    (recorded.PBS_BATCH, []), ({}, []),
    ({**recorded.LSF_BATCH, "LSB_MCPU_HOSTS": "n1 8"}, []), ({**recorded.SLURM_BATCH, "SLURM_JOB_NUM_NODES": "1"}, []),
    ({**recorded.LSF_BATCH, **recorded.JSM}, []), (recorded.SLURM_PMI2, []),
    ({**recorded.SLURM_BATCH, "MPIFLUX_JOB_ID": "3"}, []),
])
def test_one_process_in_a_job_of_several_nodes_is_told_of(environ, words):
    text = left_out(environ, detect(environ).kind)
    assert bool(text) is bool(words) and [word for word in words if word not in text] == []
