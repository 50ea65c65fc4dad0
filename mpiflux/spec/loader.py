"""From a file, and what the command line changes in it, to a typed workflow."""

from __future__ import annotations

from collections.abc import Mapping

from mpiflux.model.jobspec import HierarchySpec, JobGroup, Place, PolicySpec, Workflow
from mpiflux.spec import files
from mpiflux.spec.controller import read_controller
from mpiflux.spec.dependencies import dependency_mistakes
from mpiflux.spec.generators import ColumnReader
from mpiflux.spec.jobs import JobReader
from mpiflux.spec.jsonnodes import compose_json
from mpiflux.spec.nodes import Node, Refused, compose, decode
from mpiflux.spec.problems import Problem, Problems, TooManyProblems, WorkflowError
from mpiflux.spec.reader import Fields, Reader
from mpiflux.spec.supplies import read_supplies
from mpiflux.spec.tree import parse_short, read_hierarchy, read_policy, unknown_policy
from mpiflux.spec.variables import Overrides, Substitution, read_variables

KEYS = ("mpiflux", "name", "hierarchy", "policy", "resources", "env", "secrets", "cwd", "variables", "output_limit",
        "controller", "jobs")
VERSION = 1
"""The version of the format, the value of the key ``mpiflux``."""

MAX_OUTPUT_LIMIT = (1 << 32) - 1
"""What the length fields of an attempt record can count."""

DEFAULT_OUTPUT_LIMIT = Workflow(name="").output_limit
MAX_JOBS = 1 << 48


def load(path: str, *, overrides: Mapping[str, str] | None = None, text: bytes | None = None) -> Workflow:
    """Read a workflow file.

    ``overrides`` are ``--set NAME=VALUE`` options. ``text`` stands in for the file's content; ``path`` then only
    names it. Raises :class:`WorkflowError` with everything that is wrong; nothing else escapes for any content.
    """
    problems = Problems(path)
    try:
        data = text if text is not None else _read(path, problems)
        if len(data) > files.MAX_FILE:
            problems.add(0, 0, f"the file is larger than {files.MAX_FILE >> 20} MiB")
            raise Refused
        workflow = _load(path, data, overrides or {}, problems)
        problems.check(workflow)
        if workflow is not None:
            return workflow
    except (Refused, TooManyProblems):
        pass
    problems.check()
    raise AssertionError("a workflow was refused without a reason")


def load_hierarchy(spec: str) -> HierarchySpec:
    """The value of ``--hierarchy``: ``node,core``, ``4x8``, ``none``, inline YAML or JSON, or the path of a file that
    holds a hierarchy (or a mapping with the key ``hierarchy``). Raises :class:`WorkflowError`."""
    return load_shape(spec)[0]


def load_shape(spec: str) -> tuple[HierarchySpec, dict[str, Place]]:
    """:func:`load_hierarchy`, and where it says what, as :attr:`Workflow.places` has it."""
    short = parse_short(spec)
    if short is not None:
        return short, {"hierarchy": Place("--hierarchy")}
    inline = spec.lstrip()[:1] in ("{", "[")
    problems = Problems("--hierarchy" if inline else spec)
    hierarchy = None
    try:
        if not inline and not files.exists(spec):
            raise WorkflowError([Problem(0, 0, f"{spec!r} is neither levels such as node,core, nor widths such as 4x8, "
                                         "nor none, nor a file", source="--hierarchy")])
        content = decode(spec.encode("utf-8", "surrogateescape") if inline else _read(spec, problems), problems)
        root = compose_json(content, problems) if spec.endswith(".json") else compose(content, problems)
        reader = Reader(problems, content)
        if not inline and root.kind == "mapping" and "hierarchy" in root.entries:
            node, path = root.entries["hierarchy"][1], "$.hierarchy"
        else:
            node, path = root, "$"
        hierarchy = read_hierarchy(reader, node, path)
        reader.remember("hierarchy", node)
    except (Refused, TooManyProblems):
        pass
    problems.check()
    if hierarchy is None:
        raise AssertionError("a hierarchy was refused without a reason")
    return hierarchy, reader.places


def load_policy(name: str, directory: str) -> PolicySpec:
    """The value of ``--policy``. ``directory`` is where a user's own is looked for too. Raises
    :class:`WorkflowError`."""
    problems = Problems("--policy")
    if (mistake := unknown_policy(Reader(problems), name)) is not None:
        problems.add(0, 0, mistake)
    problems.check()
    return PolicySpec(name, directory=directory)


def _read(path: str, problems: Problems) -> bytes:
    try:
        return files.read_workflow(path)
    except files.Unreadable as error:
        problems.add(0, 0, f"cannot read the file: {error}")
        raise Refused from None


def _load(path: str, data: bytes, overrides: Mapping[str, str], problems: Problems) -> Workflow | None:
    text = decode(data, problems)
    root = compose_json(text, problems) if path.endswith(".json") else compose(text, problems)
    if root.kind != "mapping":
        problems.add(root.line, root.column, f"a workflow is a mapping with at least 'jobs:', not {root.describe()}")
        return None
    changes = Overrides(root, KEYS, problems)
    for name, value in overrides.items():
        changes.apply(name, value)
    entry = root.entries.get("variables")
    variables = read_variables(entry[1] if entry is not None else None, problems)
    Substitution(variables, problems).apply(root)
    reader = Reader(problems, text, variables)
    fields = reader.fields(root, "$", KEYS, "the workflow")
    if fields is None:
        return None
    return _workflow(path, fields, reader)


def _workflow(path: str, fields: Fields, reader: Reader) -> Workflow:
    problems = reader.problems
    if (version := reader.integer(*fields.get("mpiflux"), VERSION, 0, 1 << 31)) != VERSION:
        reader.problem(fields.node_of("mpiflux"), "$.mpiflux", f"mpiflux: this program reads version {VERSION} of the "
                       f"format, not {version}")
    directory = reader.directory = files.directory_of(path)
    groups = _groups(fields, reader, directory)
    instance, each_node = read_supplies(reader, *fields.get("resources"))
    stem = files.stem(path)
    reader.remember("hierarchy", fields.node_of("hierarchy"))
    workflow = Workflow(
        name=reader.text(*fields.get("name"), stem) or stem,
        source=path, directory=directory,
        hierarchy=read_hierarchy(reader, *fields.get("hierarchy")),
        policy=read_policy(reader, *fields.get("policy")) or PolicySpec(),
        controller=read_controller(reader, *fields.get("controller")),
        groups=groups, consumables=instance, node_consumables=each_node,
        output_limit=reader.size(*fields.get("output_limit"), DEFAULT_OUTPUT_LIMIT, MAX_OUTPUT_LIMIT),
        places=reader.places)
    if workflow.total > MAX_JOBS:
        problems.add(1, 1, f"the workflow has {workflow.total:,} jobs; at most {MAX_JOBS:,} are possible", "$.jobs")
    return workflow


def _groups(fields: Fields, reader: Reader, directory: str) -> tuple[JobGroup, ...]:
    node, path = fields.get("jobs")
    if "controller" in fields and (node is None or (node.kind == "mapping" and not node.entries)):
        return ()
    if node is None or node.is_empty or (node.kind == "mapping" and not node.entries):
        reader.problem(node or fields.node, path, "the workflow has no jobs: add one under 'jobs:'")
        return ()
    if node.kind != "mapping":
        reader.problem(node, path, f"jobs: expected a mapping of names to jobs, not {node.describe()}")
        return ()
    problems = reader.problems
    columns = ColumnReader(reader, lambda file: files.read_table(directory, file))
    jobs = JobReader(reader, columns, fields.get("env")[0], fields.get("cwd")[0], fields.get("secrets")[0])
    groups: list[JobGroup] = []
    next_id = 1
    for key, value in node.entries.values():
        group = jobs.group(key, value, len(groups), next_id)
        if group is not None:
            groups.append(group)
            next_id = group.stop_id
    for name, dependency, message in dependency_mistakes(groups, list(node.entries), jobs.uncounted,
                                                         problems.suggest):
        reader.problem(mention(place(node, (name, "after")), dependency), f"{path}.{name}.after", message)
    return tuple(groups)


def place(node: Node, keys: tuple[str, ...]) -> Node:
    """The value that ``keys`` lead to, or the last one on the way that is there."""
    for key in keys:
        if key not in node.entries:
            break
        node = node.entries[key][1]
    return node


def mention(node: Node, name: str) -> Node:
    """Where ``name`` stands in a value that may be a text, a list, a mapping, or a list of mappings."""
    for item in node.items if node.kind == "list" else [node]:
        if item.kind == "mapping" and name in item.entries:
            return item.entries[name][0]
        if item.kind == "scalar" and item.text == name:
            return item
    return node
