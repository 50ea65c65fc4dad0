"""mpiflux under a real Slurm: srun, salloc and sbatch on nodes told apart though they share a machine."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mpiflux.node import outside
from tests.support.mpi import MpiRun, installed_stack
from tests.support.runs import LIMIT, ROOT, Place, Run, until
from tests.support.slurm import Slurm

pytestmark = pytest.mark.mpi
FLAT = {"levels": []}
WHERE = "echo $MPIFLUX_NODE $(uname -n) $MPIFLUX_CORES [$CUDA_VISIBLE_DEVICES]"
ENV = {"PYTHONPATH": str(ROOT), "UCX_NET_DEVICES": "lo"}


def seen(count: int, **keys: Any) -> dict[str, Any]:
    return {"command": WHERE, "shell": True, "parameters": {"i": {"range": count}}, **keys}


class Cluster:
    """mpiflux on the sandbox, started as the installed MPI wants it."""

    def __init__(self, slurm: Slurm, place: Place) -> None:
        self.slurm, self.place = slurm, place
        self.stack = installed_stack()

    def command(self, nodes: int, a_node: int, argv: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        size = [f"-N{nodes}", f"--ntasks-per-node={a_node}", *options]
        if self.stack.name == "mpich":
            return ["srun", "-K1", *size, "--mpi=pmi2", sys.executable, "-m", "mpiflux", *argv]
        return ["salloc", "-Q", *size, *self.stack.command(nodes * a_node, ["-m", "mpiflux", *argv])]

    def begin(self, workflow: Mapping[str, Any], *words: str, nodes: int, a_node: int = 1,
              options: Sequence[str] = ()) -> tuple[MpiRun, Run]:
        name = self.place.new()
        path = self.place.write(f"{name}.yaml", workflow).name
        command = self.command(nodes, a_node, ["run", path, "--run-dir", name, *words], options)
        return self.slurm.start(command, env={**self.stack.settings(), **ENV}, cwd=self.place.path), Run(
            self.place.path / name)

    def run(self, workflow: Mapping[str, Any], *words: str, nodes: int, a_node: int = 1,
            options: Sequence[str] = ()) -> Run:
        running, run = self.begin(workflow, *words, nodes=nodes, a_node=a_node, options=options)
        with running:
            run.done = running.wait(3 * LIMIT)
        assert run.done.returncode == 0, f"{run.done.stdout}\n{run.done.stderr}"
        return run


@pytest.fixture
def cluster(slurm: Slurm, place: Place) -> Iterator[Cluster]:
    yield Cluster(slurm, place)
    until(slurm.idle, "no job is left")


@pytest.fixture
def mpich_cluster(cluster: Cluster) -> Cluster:
    if cluster.stack.name != "mpich":
        pytest.skip("ranks of Open MPI 5 are started by its own mpiexec here, not by srun")
    return cluster


def owned(run: Run) -> dict[str, tuple[str, str]]:
    return {node["node"]: (node["cores"], node["gpus"]) for node in run.meta()["resources"]}


def test_one_rank_a_node(cluster: Cluster) -> None:
    run = cluster.run({"hierarchy": {"levels": ["node"]}, "jobs": {"a": {**seen(1), "per": "node"}}}, nodes=4)
    assert [job["stdout"].split()[:2] for job in run.jobs()] == [[f"n{i}", f"n{i}"] for i in range(4)]
    assert (run.meta()["ranks"], run.meta()["nodes"]) == (4, ["n0", "n1", "n2", "n3"])


def test_several_ranks_a_node_share_its_cores_and_gpus(cluster: Cluster) -> None:
    flow = {"hierarchy": {"levels": ["node", "core"]}, "jobs": {"a": seen(8), "g": seen(4, resources={"gpus": 1})}}
    run = cluster.run(flow, "--cores-per-node", "4", nodes=2, a_node=2, options=["--gpus-per-node=2"])
    assert run.meta()["ranks"] == 4 and owned(run) == {"n0": ("0-3", "0-1"), "n1": ("0-3", "0-1")}
    words = [job["stdout"].split() for job in run.jobs()]
    assert {(where, host) for where, host, *_ in words} == {("n0", "n0"), ("n1", "n1")}
    assert {gpus for *_, gpus in words[:8]} == {"[]"} and {gpus for *_, gpus in words[8:]} <= {"[0]", "[1]"}


def test_gpus_of_each_task_are_the_node_s_together(mpich_cluster: Cluster) -> None:
    run = mpich_cluster.run({"hierarchy": FLAT, "jobs": {"g": seen(1, resources={"gpus": 2})}}, nodes=2, a_node=2,
                            options=["--gpus-per-task=1"])
    assert owned(run)["n0"][1] == "0-1"
    assert run.job("g")["stdout"].split()[-1] == "[0,1]"


def test_without_gpus_asked_for_there_are_none(cluster: Cluster) -> None:
    assert [gpus for _, gpus in owned(cluster.run({"jobs": {"a": seen(1)}}, nodes=2)).values()] == ["", ""]


def test_nodes_of_different_sizes_and_cpus_per_task(mpich_cluster: Cluster) -> None:
    """Slurm says how many CPUs a step has on each node; the sandbox does not bind, so that they are declared."""
    name = mpich_cluster.place.new()
    flow = mpich_cluster.place.write("f.yaml", {"hierarchy": FLAT, "jobs": {"w": seen(14)}}).name
    script = f"exec {sys.executable} -m mpiflux run {flow} --run-dir {name} --cores-per-node $SLURM_CPUS_ON_NODE"
    done = mpich_cluster.slurm.run(["srun", "-N4", "-n7", "-c2", "--mpi=pmi2", "sh", "-c", script],
                                   env=ENV, cwd=mpich_cluster.place.path)
    assert done.returncode == 0, done.stderr
    run = Run(mpich_cluster.place.path / name)
    assert {node: cores for node, (cores, _) in owned(run).items()} == {
        "n0": "0-3", "n1": "0-3", "n2": "0-3", "n3": "0-1"}
    assert run.meta()["ranks"] == 7 and run.results() == {"COMPLETED": 14}


def test_a_nest_three_deep(mpich_cluster: Cluster) -> None:
    place = mpich_cluster.place
    for name, inner, cores in (("leaf", None, 1), ("middle", "leaf", 1)):
        job: dict[str, Any] = {**seen(1), "per": "node"} if inner is None else {
            "command": f"{sys.executable} -m mpiflux run {inner}.yaml --run-dir {inner}", "mpi": "pmi1",
            "resources": {"nodes": 2, "tasks": 2, "cores": cores}}
        place.write(f"{name}.yaml", {"hierarchy": FLAT, "jobs": {"a": job}})
    place.expected |= {"middle", "leaf"}
    outer = {"hierarchy": FLAT, "jobs": {"a": {
        "command": f"{sys.executable} -m mpiflux run middle.yaml --run-dir middle", "mpi": "pmi1",
        "resources": {"nodes": 2, "tasks": 2, "cores": 2}}}}
    run = mpich_cluster.run(outer, nodes=2)
    leaf = Run(place.path / "leaf")
    assert owned(Run(place.path / "middle")) == {"n0": ("0-1", ""), "n1": ("0-1", "")}
    assert owned(leaf) == {"n0": ("0", ""), "n1": ("0", "")}
    assert [job["stdout"].split()[:2] for job in leaf.jobs()] == [["n0", "n0"], ["n1", "n1"]]
    found = json.loads(place.call("jobs", "-R", "--json", run.directory.name).stdout)
    assert [job["instance"] for job in found] == ["", "1", "1/1", "1/1"]


def test_into_a_live_instance_by_overlap(mpich_cluster: Cluster) -> None:
    """A step beside one that has all the CPUs reaches the instance through the door of its node."""
    place, slurm = mpich_cluster.place, mpich_cluster.slurm
    running, run = mpich_cluster.begin({"hierarchy": FLAT, "jobs": {"a": {"command": "touch ready"}, "b": {
        "command": "while [ ! -e stop ]; do sleep 0.05; done", "shell": True}}}, nodes=2)
    place.expected |= {"ready", "stop"}
    with running:
        until((place.path / "ready").exists, "the instance works")
        job = slurm.run(["squeue", "-h", "-o", "%i"]).stdout.strip()
        done = slurm.run(["srun", "--overlap", "--jobid", job, "-N1", "-n1", "-w", "n1", "--mpi=none", sys.executable,
                          "-m", "mpiflux", "submit", "--wait", "--run-dir", run.directory.name, "touch", "stop"],
                         env=ENV, cwd=place.path)
        assert done.returncode == 0, done.stderr
        assert running.wait(LIMIT).returncode == 0
    assert run.results() == {"COMPLETED": 3}


def mismatched(cluster: Cluster, kind: str) -> tuple[int, str]:
    cluster.place.write("f.yaml", {"jobs": {"a": seen(1)}})
    done = cluster.slurm.run(
        ["srun", "-N2", f"--mpi={kind}", sys.executable, "-m", "mpiflux", "run", "f.yaml", "--run-dir", "no"], env=ENV,
        cwd=cluster.place.path)
    assert not (cluster.place.path / "no").exists()
    return done.returncode, done.stderr


def test_a_launcher_that_does_not_match_is_told_in_a_line(mpich_cluster: Cluster) -> None:
    status, said = mismatched(mpich_cluster, "none")
    told = [line for line in said.splitlines() if line.startswith("mpiflux:")]
    assert status == 3 and len(told) == 1, said
    assert "Slurm started 2 ranks" in told[0] and "srun --mpi=pmi2" in told[0]


def test_a_launcher_that_the_library_itself_refuses(mpich_cluster: Cluster) -> None:
    """Left to itself MPICH aborts in MPI_Init, with five lines from each rank."""
    status, said = mismatched(mpich_cluster, "pmix")
    told = [line for line in said.splitlines() if line.startswith("mpiflux:")]
    assert status == 3 and len(told) == 1 and "Abort" not in said, said
    assert "PMIx" in told[0] and "srun --mpi=pmi2" in told[0]


# -- the end of an allocation ----------------------------------------------------------------------------------------

LONG = {"hierarchy": FLAT, "jobs": {
    "quick": {"command": "true", "parameters": {"i": {"range": 4}}},
    # a script that goes on when its child is signalled, and one that has an answer to the signal, which says nothing
    "long": {"command": "if [ ! -e go ]; then trap '[ {i} = 0 ] || exit 1' TERM USR1; touch running-{i}; "
                        "sleep 1000; fi; true", "shell": True,
             "parameters": {"i": {"range": 2}}, "resources": {"cores": 1}},
    "late": {"command": "touch late", "resources": {"nodes": 2, "tasks": 2, "exclusive": True}}}}


def long_job(cluster: Cluster) -> tuple[MpiRun, Run]:
    running, run = cluster.begin(LONG, nodes=2)
    cluster.place.expected |= {"running-0", "running-1", "go", "late"}
    until(lambda: running.process.poll() is not None or all(
        (cluster.place.path / f"running-{i}").exists() for i in range(2)), "both long jobs run")
    # what ends just before the signal is in doubt, and runs again
    time.sleep(2 * outside.AROUND)
    return running, run


def processes(place: Place) -> set[str]:
    """Command lines of processes that work in a test's directory."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").resolve() == place.path.resolve():
                found.add((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return {line for line in found if "srun" not in line and "salloc" not in line}


@pytest.mark.parametrize("how", [["--signal=TERM"], ["--signal=USR1"], []], ids=["ended", "warned", "cancelled"])
def test_a_run_that_slurm_ends_can_go_on(mpich_cluster: Cluster, how: list[str]) -> None:
    """``--signal=TERM@60`` sends what the first does, ``USR1@60`` what the second does, to all processes of the step
    also to those of jobs; ``scancel`` TERM and then KILL. Nothing stays behind."""
    place = mpich_cluster.place
    running, run = long_job(mpich_cluster)
    with running:
        job = mpich_cluster.slurm.run(["squeue", "-h", "-o", "%i"]).stdout.strip()
        assert mpich_cluster.slurm.run(["scancel", *how, job]).returncode == 0
        running.process.wait(LIMIT)
    until(lambda: not processes(place), "no process is left")
    ended = run.results()
    assert ended.pop("COMPLETED") == 4 and set(ended) <= {"SCHED", "RUN"}
    assert not (place.path / "late").exists(), "it was started after the signal"
    if how:
        assert run.meta()["state"] == "interrupted"
    (place.path / "go").touch()
    done = mpich_cluster.slurm.run(
        mpich_cluster.command(2, 1, ["run", f"{run.directory.name}.yaml", "--run-dir", run.directory.name, "--resume"]),
        env=ENV, cwd=place.path)
    assert done.returncode == 0, done.stderr
    assert run.results() == {"COMPLETED": 7}
    assert {job["attempts"] for job in run.jobs() if job["name"] == "quick"} == {1}, "they did not run again"


def test_the_end_of_the_allocation_is_known_from_slurm(mpich_cluster: Cluster) -> None:
    """Slurm 22.05 sets no SLURM_JOB_END_TIME: it is asked."""
    flow = {"hierarchy": FLAT, "jobs": {"short": {"command": "true", "time_limit": "5s"},
                                        "long": {"command": "true", "time_limit": "1h"}}}
    running, run = mpich_cluster.begin(flow, nodes=2, options=["-t", "30"])
    with running:
        done = running.wait(LIMIT)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "long: 1 job not started: with a time limit of 3600 s it could not finish before" in done.stderr
    assert run.results() == {"COMPLETED": 1, "SCHED": 1}


@pytest.mark.slow
def test_a_time_limit_that_passes_ends_the_run_resumable(mpich_cluster: Cluster) -> None:
    """For real: a minute is the shortest that Slurm has. The run is told of another end, so that Slurm comes first."""
    place, slurm = mpich_cluster.place, mpich_cluster.slurm
    script = place.write("job.sh", "#!/bin/sh\nexport MPIFLUX_END_TIME=0\nsrun -K0 --mpi=pmi2 "
                         f"{sys.executable} -m mpiflux run f.yaml --run-dir run\n").name
    place.write("f.yaml", LONG)
    place.expected |= {"run", "out", "running-0", "running-1", "late"}
    job = slurm.submit(["-N2", "--ntasks-per-node=1", "-t1", "--output=out", script], env=ENV, cwd=place.path)
    until(lambda: slurm.state(job) == "TIMEOUT", "its time passes", 180)
    until(lambda: not processes(place), "no process is left")
    run = Run(place.path / "run")
    assert run.results() == {"COMPLETED": 4, "SCHED": 3} and run.meta()["state"] == "interrupted"
