"""Shapes of trees to run, and the proof from records that a run kept to its tree."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from mpiflux.model import idset
from mpiflux.store.reader import open_run
from tests.support.runs import Place, Run

NESTED = {"children": [
    {"name": "big", "share": {"cores": 5}, "children": [
        {"name": "single", "share": {"cores": 1}}, {"name": "pair", "count": 2}]},
    {"name": "rest", "children": [{"count": 3}]},
]}
"""Uneven: of 11 cores, leaves of 1, 2, 2, 2, 2 and 2."""


@dataclass(frozen=True)
class Shape:
    """A hierarchy and what must come of it. ``how`` it is given: in the ``file``, as ``option``, as ``json`` file."""

    name: str
    cores: int
    hierarchy: Any
    how: str
    leaves: list[int]
    """Number of cores of each leaf, ascending."""
    depth: int
    distribution: str = ""

    def workflow(self, jobs: int, wide: int) -> dict[str, Any]:
        """``jobs`` jobs on one core that each leave a mark, and ``wide`` on two where a leaf has two."""
        command = "echo {job.id} >>marks; echo {job.id} $MPIFLUX_CORES"
        groups: dict[str, Any] = {
            "one": {"command": command, "shell": True, "parameters": {"i": {"range": jobs}}}}
        if wide and max(self.leaves) > 1:
            groups["two"] = {"command": command, "shell": True, "parameters": {"i": {"range": wide}},
                             "resources": {"cores": 2}}
        found: dict[str, Any] = {"jobs": groups}
        if self.how == "file":
            found["hierarchy"] = self._given()
        return found

    def options(self, place: Place) -> list[str]:
        """What goes on the command line."""
        options = ["--cores-per-node", str(self.cores)]
        if self.how == "json":
            place.write("tree.json", self._given())
            options += ["--hierarchy", "tree.json"]
        elif self.how == "option":
            options += ["--hierarchy", self.hierarchy]
        return options

    def _given(self) -> Any:
        return {**self.hierarchy, "distribution": self.distribution} if self.distribution else self.hierarchy


SHAPES = [
    Shape("depth-1", 3, {"levels": []}, "file", [3], 1),
    Shape("none", 4, "none", "option", [4], 1),
    Shape("node", 3, {"levels": ["node"]}, "file", [3], 2),
    Shape("numa", 4, "numa", "option", [4], 2),
    Shape("node-core", 6, {"levels": ["node", "core"]}, "file", [1] * 6, 3, "round_robin"),
    Shape("core-option", 5, "node,core", "option", [1] * 5, 3),
    Shape("width-4-8", 40, {"width": [4, 8]}, "json", sorted([2, 1, 1, 1, 1, 1, 1, 2] * 4), 3),
    Shape("4x8-round", 36, {"width": [4, 8]}, "file", sorted([1, 1, 1, 1, 1, 1, 1, 2] * 4), 3, "round_robin"),
    Shape("nested", 11, NESTED, "file", [1, 2, 2, 2, 2, 2], 3),
    Shape("nested-json", 11, NESTED, "json", [1, 2, 2, 2, 2, 2], 3, "round_robin"),
    Shape("mixed", 8, "{levels: [{by: node, distribution: round_robin}, {width: 2, policy: {name: fcfs, "
          "queue_depth: 4}}]}", "option", [4, 4], 3),
]
BY_NAME = {shape.name: shape for shape in SHAPES}


def check(shape: Shape, run: Run, place: Place, jobs: int, wide: int) -> None:
    """Every job ran exactly once, where its scheduler owns the cores, and no core served two jobs at a time."""
    place.expected.add("marks")
    total = jobs + (wide if wide and max(shape.leaves) > 1 else 0)
    marks = [int(word) for word in (place.path / "marks").read_text().split()]
    assert sorted(marks) == list(range(1, total + 1))
    assert run.results() == {"COMPLETED": total}
    tree = run.meta()["tree"]
    assert max(depth_of(tree, leaf) for leaf in tree) == shape.depth
    leaves = [one for one in tree if not one["children"]]
    assert sorted(len(cores_of(leaf)) for leaf in leaves) == shape.leaves
    check_shares(tree)
    check_records(tree, run)


def depth_of(tree: list[dict[str, Any]], one: dict[str, Any]) -> int:
    return 1 if one["parent"] < 0 else 1 + depth_of(tree, tree[one["parent"]])


def cores_of(one: dict[str, Any]) -> set[tuple[str, int]]:
    return {(share["node"], core) for share in one["resources"] for core in idset.decode(share["cores"])}


def check_shares(tree: list[dict[str, Any]]) -> None:
    """Siblings share nothing and together have what their parent has."""
    for one in tree:
        parts = [cores_of(tree[child]) for child in one["children"]]
        if parts:
            assert sum(map(len, parts)) == len(set().union(*parts))
            assert set().union(*parts) == cores_of(one)


def check_records(tree: list[dict[str, Any]], run: Run) -> None:
    """Each attempt was on cores that its scheduler owns, one job a core."""
    with open_run(str(run.directory)) as reader:
        owner = {int(record["id"]): int(record["r_sched"]) for record in reader.records}
        for job in reader.jobs(with_output=True):
            number = job["id"]
            cores = {(job["nodes"][0], core) for core in idset.decode(job["cores"])}
            assert job["attempts"] == 1
            assert len(cores) == {"one": 1, "two": 2}[job["name"]]
            assert not tree[owner[number]]["children"]
            assert cores <= cores_of(tree[owner[number]]), f"job {number} ran outside of its scheduler's cores"
            assert job["stdout"] == f"{number} {job['cores']}\n"
    check_cores_apart(run)


def check_cores_apart(run: Run) -> None:
    """No core had two jobs at a time."""
    busy: dict[tuple[str, int], list[tuple[float, float, int]]] = {}
    for job in run.jobs(with_output=False):
        sets = [job["cores"]] if isinstance(job["cores"], str) else job["cores"]
        for node, cores in zip(job["nodes"], sets, strict=True):
            for core in idset.decode(cores):
                busy.setdefault((node, core), []).append((job["t_start"], job["t_finish"], job["id"]))
    for core, spans in busy.items():
        spans.sort()
        for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
            assert end <= begin, f"jobs {first} and {second} were on core {core} together"


def check_dealt_in_turn(tree: list[dict[str, Any]], run: Run) -> None:
    """Below every scheduler that deals in turn, children got about equally many jobs.

    A leaf that has nothing left to do takes over what its siblings have not started, so it is not exact.
    """
    counts = [0] * len(tree)
    with open_run(str(run.directory)) as reader:
        for record in reader.records:
            at = int(record["r_sched"])
            while at >= 0:
                counts[at] += 1
                at = tree[at]["parent"]
    for one in tree:
        if one["children"] and one["distribution"] == "round_robin":
            got = [counts[child] for child in one["children"]]
            assert max(got) - min(got) <= max(3, 0.3 * sum(got) / len(got)), f"{one['name']} dealt {got}"
