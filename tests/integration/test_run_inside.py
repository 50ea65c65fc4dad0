"""What a job sees: environment, binding, directory, files; and every way to give it parameters."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mpiflux.model import idset
from tests.support.mpi import clean_environment, installed_stack
from tests.support.runs import ROOT, Place

PY = sys.executable
SEE = """
import json, os
print(json.dumps({
    "env": dict(os.environ), "cpus": sorted(os.sched_getaffinity(0)), "cwd": os.getcwd(),
    "fds": sorted(os.listdir("/proc/self/fd")), "group": os.getpgid(0) == os.getpid(),
    "shm": [line.split()[-1] for line in open("/proc/self/maps") if "/dev/shm/" in line],
}))
"""
OWN = {"MPIFLUX_JOB_ID", "MPIFLUX_JOB_NAME", "MPIFLUX_JOB_INDEX", "MPIFLUX_ATTEMPT", "MPIFLUX_TASK_RANK",
       "MPIFLUX_TASK_COUNT", "MPIFLUX_LOCAL_RANK", "MPIFLUX_CORES", "MPIFLUX_GPUS", "MPIFLUX_NODE", "MPIFLUX_NODE_LIST",
       "MPIFLUX_RUN_DIR", "MPIFLUX_URI"}
GPU = {"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL"}
CORES = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.mpi)])
def test_environment_is_the_callers_and_ours_and_no_launchers(place: Place, ranks: int) -> None:
    place.write("see.py", SEE)
    extra = {"KEPT": "as it is\nover lines", "SLURM_JOB_ID": None, "PMIX_FAKE": "x", "HYDI_FAKE": "1",
             "OMP_NUM_THREADS": "7"}
    flow = {"env": {"OMP_NUM_THREADS": 1, "WHO": "{job.name}-{i}"}, "jobs": {"see": {
        "command": [PY, "see.py"], "parameters": {"i": [5, 6]}, "env": {"MORE": "{job.id} {{}} ψ"}}}}
    run = place.run(flow, ranks=ranks, env=extra)
    for job in run.jobs():
        seen = json.loads(job["stdout"])
        env = seen["env"]
        assert not OWN - set(env)
        tuning = installed_stack().settings() if ranks else {}
        tuning = {name: value for name, value in tuning.items() if name.startswith(("OMPI_MCA_mpi_", "OMPI_ALLOW_"))}
        wanted = {**clean_environment({"PYTHONPATH": str(ROOT), **extra, **tuning}), "OMP_NUM_THREADS": "1",
                  "WHO": f"see-{job['params']['i']}", "MORE": f"{job['id']} {{}} ψ"}
        for name in ("PMIX_FAKE", "HYDI_FAKE"):
            del wanted[name]
        rest = {k: v for k, v in env.items() if k not in OWN | GPU | {"LC_CTYPE", "PWD"}}
        mine = {k: v for k, v in wanted.items() if k != "PWD"}
        mine.pop("LC_CTYPE", None)
        # what only a test's MpiRun and mpiexec itself add
        for name in set(rest) - set(mine):
            assert name == "MPI_RUN_MARK" or (ranks and not name.startswith(("PMI", "HYD", "OMPI_", "PRTE_"))), name
        assert {k: v for k, v in rest.items() if k in mine} == mine
        assert env["MPIFLUX_JOB_ID"] == str(job["id"])
        assert env["MPIFLUX_JOB_NAME"] == "see"
        assert env["MPIFLUX_JOB_INDEX"] == str(job["index"])
        assert (env["MPIFLUX_ATTEMPT"], env["MPIFLUX_TASK_RANK"], env["MPIFLUX_LOCAL_RANK"]) == ("1", "0", "0")
        assert env["MPIFLUX_TASK_COUNT"] == "1"
        assert env["MPIFLUX_CORES"] == job["cores"]
        assert env["MPIFLUX_GPUS"] == ""
        assert env["MPIFLUX_NODE_LIST"] == job["nodes"][0]
        assert env["MPIFLUX_RUN_DIR"] == str(run.directory)
        assert env["MPIFLUX_URI"].startswith("local://")
        assert seen["fds"] == ["0", "1", "2", "3"]
        assert seen["shm"] == []
        assert seen["group"]
        assert seen["cwd"] == str(place.path)


def test_each_job_is_bound_to_its_cores(place: Place) -> None:
    place.write("see.py", SEE)
    flow = {"jobs": {"one": {"command": [PY, "see.py"], "parameters": {"i": {"range": 6}}},
                     "all": {"command": [PY, "see.py"], "resources": {"cores": len(CORES)}}}}
    run = place.run(flow)
    seen: dict[str, set[tuple[int, ...]]] = {}
    for job in run.jobs():
        cpus = json.loads(job["stdout"])["cpus"]
        seen.setdefault(job["cores"], set()).add(tuple(cpus))
        assert set(cpus) <= set(CORES)
    assert all(len(bindings) == 1 for bindings in seen.values()), "one core, several bindings"
    every = run.job("all")
    assert json.loads(every["stdout"])["cpus"] == CORES
    singles = {cores: next(iter(cpus)) for cores, cpus in seen.items() if cores != every["cores"]}
    assert len({cpu for cpus in singles.values() for cpu in cpus}) == sum(map(len, singles.values()))


def test_tasks_of_a_job_have_ranks_and_cores_of_their_own(place: Place) -> None:
    flow = {"jobs": {"team": {
        "command": "echo $MPIFLUX_TASK_RANK of $MPIFLUX_TASK_COUNT local $MPIFLUX_LOCAL_RANK "
                   "on $(grep Cpus_allowed_list /proc/self/status) >>team.$MPIFLUX_TASK_RANK",
        "shell": True, "resources": {"tasks": 2}}}}
    run = place.run(flow, "--cores-per-node", "2")
    place.expected |= {"team.0", "team.1"}
    texts = [(place.path / f"team.{i}").read_text().split() for i in range(2)]
    assert [text[0] for text in texts] == ["0", "1"]
    assert [text[2] for text in texts] == ["2", "2"]
    assert [text[4] for text in texts] == ["0", "1"]
    job = run.job("team")
    assert (job["tasks"], job["cores"], job["result"]) == (2, "0-1", "COMPLETED")
    if len(CORES) >= 2:
        cpus = [set(idset.decode(text[7])) for text in texts]
        assert not cpus[0] & cpus[1]


def test_a_failing_task_fails_the_job(place: Place) -> None:
    flow = {"jobs": {"team": {"command": "test $MPIFLUX_TASK_RANK = 1 && exit 7; sleep 60", "shell": True,
                              "resources": {"tasks": 2}}}}
    run = place.run(flow, "--cores-per-node", "2", status=1)
    assert (run.job("team")["result"], run.job("team")["returncode"]) == ("FAILED", 7)


def test_declared_gpus_are_given_out_and_shown(place: Place) -> None:
    flow = {"jobs": {
        "one": {"command": "echo $MPIFLUX_GPUS; sleep 0.1", "shell": True, "parameters": {"i": {"range": 6}},
                "resources": {"gpus": 1}},
        "two": {"command": "echo $MPIFLUX_GPUS", "shell": True, "resources": {"gpus": 2}},
        "none": {"command": "echo [$MPIFLUX_GPUS]", "shell": True}}}
    run = place.run(flow, "--gpus-per-node", "2", "--cores-per-node", "4")
    spans: dict[str, list[tuple[float, float]]] = {}
    for job in run.jobs():
        if job["name"] == "none":
            assert (job["stdout"], job["gpus"]) == ("[]\n", "")
            continue
        assert job["stdout"].strip() == job["gpus"]
        ids = idset.decode(job["gpus"])
        assert len(ids) == {"one": 1, "two": 2}[job["name"]]
        for gpu in ids:
            spans.setdefault(str(gpu), []).append((job["t_start"], job["t_finish"]))
    assert set(spans) == {"0", "1"}
    for used in spans.values():
        used.sort()
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(used))


def test_directories_and_files_are_templates(place: Place) -> None:
    place.write("in/a.txt", "alpha\n")
    place.write("in/b.txt", "beta\n")
    place.write("work 1/x", "")
    place.write("work 2/x", "")
    flow = {"jobs": {"copy": {
        "command": "pwd; cat; echo oops {which} >&2; printf '%s' \"$NOTE\"", "shell": True,
        "parameters": {"which": ["a", "b"], "n": [1, 2]}, "sampling": "zip", "cwd": "work {n}",
        "env": {"NOTE": "{job.name}.{job.index}"}, "input": "../in/{which}.txt", "output": "out-{job.id}-{which}",
        "error": "err-{n}"}}}
    run = place.run(flow)
    for n, (which, text) in enumerate((("a", "alpha"), ("b", "beta")), 1):
        here = place.path / f"work {n}"
        assert (here / f"out-{n}-{which}").read_text() == f"{here}\n{text}\ncopy.{n - 1}"
        assert (here / f"err-{n}").read_text() == f"oops {which}\n"
        assert sorted(os.listdir(here)) == [f"err-{n}", f"out-{n}-{which}", "x"]
    assert all(job["stdout"] == "" == job["stderr"] for job in run.jobs())


def test_one_file_for_both_streams_and_one_stream_only(place: Place) -> None:
    place.expected |= {"both", "only"}
    flow = {"jobs": {
        "both": {"command": "echo 1; echo 2 >&2; echo 3", "shell": True, "output": "both", "error": "both"},
        "only": {"command": "echo kept; echo filed >&2", "shell": True, "error": "only"}}}
    run = place.run(flow)
    assert (place.path / "both").read_text() == "1\n2\n3\n"
    assert (place.path / "only").read_text() == "filed\n"
    assert run.stdout("only") == b"kept\n"


def test_what_the_files_of_a_job_lack_fails_that_job_alone(place: Place) -> None:
    flow = {"jobs": {
        "input": {"command": "cat", "input": "missing-{job.id}"},
        "cwd": {"command": "pwd", "cwd": "nowhere"},
        "output": {"command": "echo x", "output": "no/dir/file"},
        "good": {"command": "echo fine"}}}
    run = place.run(flow, status=1)
    failed = {job["name"]: job for job in run.jobs()}
    assert failed.pop("good")["result"] == "COMPLETED"
    for name, part in (("input", "missing-1"), ("cwd", "nowhere"), ("output", "no/dir/file")):
        assert (failed[name]["result"], failed[name]["returncode"]) == ("FAILED", 126), name
        assert part in failed[name]["reason"]


def values(place: Place, parameters: dict[str, Any], sampling: str = "product") -> list[list[str]]:
    names = list(parameters)
    flow = {"jobs": {"p": {"command": ["printf", "%s|", *(f"{{{name}}}" for name in names)],
                           "parameters": parameters, "sampling": sampling}}}
    return [job["stdout"].split("|")[:-1] for job in place.run(flow).jobs()]


def test_every_generator(place: Place) -> None:
    place.write("table.csv", "n,word\n1,one\n2,two words\n3,\"three, quoted\"\n4,vier ψ\n5,5\n")
    rows = values(place, {
        "range": {"range": 5}, "span": {"range": [10, 0, -2]}, "lin": {"linspace": [0, 1, 5]},
        "log": {"logspace": [0, 4, 5]}, "lhs": {"lhs": [0, 10, 5], "seed": 3},
        "uniform": {"uniform": [-1, 1, 5], "seed": 3}, "normal": {"normal": [0, 2, 5]},
        "csv": {"csv": "table.csv", "column": "word"}, "num": {"csv": "table.csv", "column": "n"},
        "list": ["a b", 1, 2.5, True, "1.50"]}, "zip")
    columns = list(zip(*rows, strict=True))
    assert columns[0] == ("0", "1", "2", "3", "4")
    assert columns[1] == ("10", "8", "6", "4", "2")
    assert columns[2] == ("0.0", "0.25", "0.5", "0.75", "1.0")
    assert [float(x) for x in columns[3]] == [1, 10, 100, 1000, 10000]
    assert sorted(int(float(x) // 2) for x in columns[4]) == [0, 1, 2, 3, 4], "one in each fifth"
    assert all(-1 <= float(x) < 1 for x in columns[5]) and len(set(columns[5])) == 5
    assert all(math.isfinite(float(x)) for x in columns[6]) and len(set(columns[6])) == 5
    assert columns[7] == ("one", "two words", "three, quoted", "vier ψ", "5")
    assert columns[8] == ("1", "2", "3", "4", "5")
    assert columns[9] == ("a b", "1", "2.5", "true", "1.50")


def test_product_varies_the_last_fastest_and_a_record_says_the_values(place: Place) -> None:
    rows = values(place, {"a": {"range": 3}, "b": ["x", "y"], "c": {"linspace": [0.1, 0.2, 2]}})
    assert rows == [[str(a), b, str(c)] for a in range(3) for b in "xy" for c in (0.1, 0.2)]


def test_json_workflow_set_and_the_copy_in_the_run_directory(place: Place) -> None:
    flow = {"mpiflux": 1, "name": "j", "variables": {"n": 2, "word": "dull"}, "jobs": {
        "a": {"command": ["echo", "${word}", "{i}", "\ud83d\ude00"], "parameters": {"i": {"range": "${n}"}},
              "time_limit": "1h"}}}
    (place.path / "flow.json").write_text(json.dumps(flow))
    place.expected.add("flow.json")
    name = place.new()
    place.call("flow.json", "--run-dir", name, "--set", "n=4", "--set", "word=bright", "--set", "jobs.a.retries=1")
    shown = json.loads(place.call("jobs", name, "--json", "--with-output").stdout)
    assert [job["stdout"] for job in shown] == [f"bright {i} 😀\n" for i in range(4)]
    copies = [p for p in (place.path / name).iterdir() if p.name.startswith("workflow.")]
    assert len(copies) == 1 and "dull" in copies[0].read_text()
    spec = json.loads(place.call("job", "show", "1", name, "--json").stdout)["jobspec"]
    assert "1" in json.dumps(spec) and "echo" in json.dumps(spec)


def test_a_default_run_directory_is_named_after_the_workflow(place: Place) -> None:
    place.write("flow.yaml", "name: mine\njobs: {a: {command: 'true'}}\n")
    place.call("flow.yaml")
    made = place.strays()
    assert len(made) == 1 and next(iter(made)).startswith("mpiflux-run-mine-")
    place.call("jobs", next(iter(made)))
    assert {p.name for p in (place.path / next(iter(made))).iterdir()} >= {"run.db", "workflow.yaml", "instance.json",
                                                                           "log"}
    place.expected |= made


def test_nothing_is_written_beside_what_was_asked_for(place: Place) -> None:
    place.write("sub/flow.yaml", {"jobs": {"a": {"command": "pwd"}, "b": {"command": "ls {workflow.dir}"}}})
    name = place.new()
    place.call("run", "sub/flow.yaml", "--run-dir", f"{name}/deep/run")
    found = {str(p.relative_to(place.path)) for p in place.path.rglob("*") if p.is_file()}
    assert {Path(p).parts[0] for p in found} == {"sub", name}
    jobs = json.loads(place.call("jobs", f"{name}/deep/run", "--json", "--with-output").stdout)
    assert [job["stdout"] for job in jobs] == [f"{place.path}\n", "flow.yaml\n"]
