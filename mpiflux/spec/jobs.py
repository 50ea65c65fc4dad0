"""One entry of ``jobs`` as a :class:`JobGroup`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping

import msgspec

from mpiflux.model.jobspec import Dependency, JobGroup, Request
from mpiflux.model.params import Column, ParamTable
from mpiflux.model.retry import Retry, retry_on
from mpiflux.model.template import BUILTINS
from mpiflux.spec.distributions import DurationError, parse_distribution
from mpiflux.spec.generators import MAX_ELEMENTS, ColumnReader
from mpiflux.spec.moments import as_moment
from mpiflux.spec.nodes import Node
from mpiflux.spec.problems import nearest, shorten
from mpiflux.spec.reader import Fields, Reader
from mpiflux.spec.scalars import as_int
from mpiflux.spec.supplies import BUILT_IN, read_amount

KEYS = ("command", "script", "shell", "parameters", "sampling", "resources", "time_limit", "retries", "retry_on",
        "priority", "after", "begin_time", "env", "secrets", "cwd", "input", "output", "error", "mpi", "per",
        "duration")
RESOURCES = BUILT_IN
RETRIES = ("limit", "backoff", "factor", "max")
KINDS = ("ok", "any", "not_ok", "each")
_KIND_WORDS = {"afterok": "ok", "afterany": "any", "afternotok": "not_ok", "aftercorr": "each"}
_ELSEWHERE = {"cpus": "cores", "cpu": "cores", "ncores": "cores", "ntasks": "tasks", "ranks": "tasks", "mem": "memory",
              "ram": "memory", "nnodes": "nodes", "hosts": "nodes"}
"""What other schedulers call our resources: such a name is surely not meant as a consumable."""

PER_NODE = "node"
"""The parameter that a job with ``per: node`` has besides its own: the name of the node."""
MAX_TASKS = 65_535
MAX_COUNT = 1_000_000
MAX_MEMORY = 1 << 60
MAX_SECONDS = 1e9
MAX_RETRIES = 10_000
MAX_FACTOR = 1000
MAX_ENV = 4096
MAX_COMMAND = 1 << 18
"""Characters of a command that is to be split: shlex takes quadratic time for a long word."""

_NO_PROGRAM = "command: names no program"
_JOB_NAME = re.compile(r"\w[\w.+-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_PARAMETER = re.compile(r"[^\W\d][\w-]*")


class JobReader:
    """Builds job groups; ``env`` and ``cwd`` are the workflow's own, as nodes, for the jobs to inherit."""

    def __init__(self, reader: Reader, columns: ColumnReader, env: Node | None, cwd: Node | None,
                 secrets: Node | None = None) -> None:
        self.reader, self.columns = reader, columns
        self.cwd = cwd
        self.uncounted: set[str] = set()
        """Jobs whose parameters are wrong, so that nobody knows how many they are."""
        self.env = self.environment(env, "$.env")
        self.secrets = self._secret_names(secrets, "$.secrets")

    def group(self, key: Node, node: Node, number: int, first_id: int) -> JobGroup | None:
        """One job; what is wrong is noted, and defaults stand in its place."""
        name, path = key.text, f"$.jobs.{key.text}"
        if not _JOB_NAME.fullmatch(name) or len(name) > 200 or name.isdecimal():
            self.reader.problem(key, path, f"{shorten(name)} cannot name a job: use letters, digits, '_', '-', '+' and "
                                "'.', at most 200, starting with a letter or digit, and not digits alone")
        fields = self.reader.fields(node, path, KEYS, f"job {name}")
        if fields is None:
            return None
        params, names = self._parameters(fields)
        if len(params.names) < len(names):
            self.uncounted.add(name)
        if fields.get("per")[0] is not None:
            if PER_NODE in names:
                reader = self.reader
                reader.problem(fields.node_of("parameters"), f"{path}.parameters", f"parameters: {PER_NODE!r} is the "
                               "node's name in a job with 'per: node'; choose another")
            names = [*names, PER_NODE]
        command, script, shell = self._program(fields, names, name)
        reader = self.reader
        retries, retry = self._retries(fields)
        request = self._request(fields, name)
        reader.remember(f"job {name}", key)
        env = self._merged_env(fields, names, name)
        begin = self._begin(*fields.get("begin_time"))
        return JobGroup(
            number=number, name=name, first_id=first_id, count=len(params), params=params,
            command=command, script=script, shell=shell,
            env=env, secrets=self._secrets(fields, name, env),
            cwd=self._cwd(fields, names),
            input=reader.template(*fields.get("input"), names, "a file name"),
            output=reader.template(*fields.get("output"), names, "a file name"),
            error=reader.template(*fields.get("error"), names, "a file name"),
            request=request,
            time_limit=reader.duration(*fields.get("time_limit"), 0.0, MAX_SECONDS),
            retries=retries, retry=retry,
            priority=reader.integer(*fields.get("priority"), 16, 0, 31),
            after=(*self._after(*fields.get("after")), *([Dependency("", "begin")] if any(begin) else [])),
            begin_time=begin[0], begin_after=begin[1],
            mpi=reader.choice(*fields.get("mpi"), "none", ("none", "pmi1", "pmix")),
            duration=self._duration(*fields.get("duration")),
        )

    # -- what runs -------------------------------------------------------------------------------------------------

    def _program(self, fields: Fields, names: Collection[str], name: str) -> tuple[tuple[str, ...], str | None, bool]:
        reader = self.reader
        shell = reader.boolean(*fields.get("shell"))
        command, command_path = fields.get("command")
        script, script_path = fields.get("script")
        if (command is None) == (script is None):
            what = "has both 'command' and 'script'; keep one" if command else "needs a 'command' (or a 'script')"
            reader.problem(script or fields.node, fields.path, f"job {name} {what}")
        if script is not None:
            if shell and command is None:
                reader.problem(fields.node_of("shell"), f"{fields.path}.shell",
                               "shell: a script runs by its own #! line; remove 'shell'")
            text = self._shell_text(script, script_path, names, "script: it is empty; write what is to run")
            if command is None:
                return (), text, False
        if command is None:
            return (), None, False
        if shell:
            if command.kind == "list":
                reader.problem(command, command_path, "command: 'shell: true' wants one text, not a list")
                return self._argument_list(command, command_path, names), None, True
            return (self._shell_text(command, command_path, names, _NO_PROGRAM),), None, True
        if command.kind == "list":
            return self._argument_list(command, command_path, names), None, False
        return self._split(command, command_path, names), None, False

    def _shell_text(self, node: Node, path: str, names: Collection[str], nothing: str) -> str:
        """What a shell reads; ``nothing`` says what is wrong where it is blank."""
        text = self.reader.shell_text(node, path, names)
        if node.kind == "scalar" and not node.is_empty and not node.text.strip():
            self.reader.problem(node, path, nothing)
        return text

    def _argument_list(self, node: Node, path: str, names: Collection[str]) -> tuple[str, ...]:
        argv = tuple(self.reader.template(item, f"{path}[{i}]", names, "an argument")
                     for i, item in enumerate(node.items))
        if not argv:
            self.reader.problem(node, path, "command: the list is empty; name a program")
        elif argv[0] == "" and node.items[0].kind == "scalar" and not node.items[0].is_empty:
            self.reader.problem(node.items[0], path, "command: the program's name is empty")
        return argv

    def _split(self, node: Node, path: str, names: Collection[str]) -> tuple[str, ...]:
        """Words as a POSIX shell makes them, before anything is substituted: a value never becomes two words."""
        text = self.reader.text(node, path, "", "a text or a list of arguments")
        if len(text) > MAX_COMMAND:
            self.reader.problem(node, path, f"command: a text longer than {MAX_COMMAND:,} characters; write a list")
            return ()
        try:
            argv = tuple(shlex.split(text))
        except ValueError as error:
            self.reader.problem(node, path, f"command: cannot be split into words: {str(error).lower()}")
            self.reader.check_template(node, path, text, names)
            return ()
        if (not argv or not argv[0]) and node.kind == "scalar" and not node.is_empty and node.text == text:
            self.reader.problem(node, path, _NO_PROGRAM)
        for word in argv:
            self.reader.check_template(node, path, word, names)
        return argv

    # -- parameters ------------------------------------------------------------------------------------------------

    def _parameters(self, fields: Fields) -> tuple[ParamTable, list[str]]:
        """The table, and all names including those whose values are wrong."""
        reader = self.reader
        sampling = reader.choice(*fields.get("sampling"), "product", ("product", "zip"))
        node, path = fields.get("parameters")
        if node is None:
            return ParamTable(), []
        if node.kind != "mapping":
            reader.problem(node, path, f"parameters: expected a mapping of names to values, not {node.describe()}")
            return ParamTable(), []
        columns: dict[str, Column] = {}
        for name, (key, value) in node.entries.items():
            if not _PARAMETER.fullmatch(name):
                reader.problem(key, f"{path}.{name}", f"{shorten(name)} cannot name a parameter: use letters, digits, "
                               "'_' and '-'" + (f" ({name} is built in)" if name in BUILTINS else ""))
                continue
            column = self.columns.column(value, f"{path}.{name}", name)
            if column is not None:
                columns[name] = column
        names = list(node.entries)
        table = ParamTable(tuple(columns), tuple(columns.values()), sampling)
        fit = self._lengths_fit(table, node, path)
        return (table if fit and len(columns) == len(names) else ParamTable()), names

    def _lengths_fit(self, table: ParamTable, node: Node, path: str) -> bool:
        lengths = [len(column) for column in table.columns]
        if table.sampling == "zip" and len(set(lengths)) > 1:
            shown = ", ".join(f"{name} has {n:,}" for name, n in zip(table.names, lengths, strict=True))
            self.reader.problem(node, path, f"sampling: zip pairs values, but the lengths differ: {shown}")
            return False
        total = 1
        for n in lengths:
            total *= n
        if table.sampling == "product" and total > MAX_ELEMENTS:
            shown = " x ".join(f"{n:,}" for n in lengths)
            self.reader.problem(node, path, f"the product of all parameters ({shown}) is more than {MAX_ELEMENTS:,} "
                                "jobs" + ("; did you mean 'sampling: zip'?" if len(set(lengths)) == 1 else ""))
            return False
        return True

    # -- when it runs again ----------------------------------------------------------------------------------------

    def _retries(self, fields: Fields) -> tuple[int, Retry]:
        reader, (node, path) = self.reader, fields.get("retries")
        retry = self._retry_on(*fields.get("retry_on"))
        if "retry_on" in fields and node is None:
            reader.problem(fields.node_of("retry_on"), f"{fields.path}.retry_on",
                           "retry_on: the job has no retries; say how many by 'retries'")
        if node is None or node.kind != "mapping":
            return reader.integer(node, path, 0, 0, MAX_RETRIES), retry
        inner = reader.fields(node, path, RETRIES, "retries")
        assert inner is not None
        if "limit" not in inner:
            reader.problem(node, path, "retries: how many? Add 'limit'")
        factor_node, factor_path = inner.get("factor")
        factor = reader.real(factor_node, factor_path, 2.0)
        if factor_node is not None and (factor is None or not 1 <= factor <= MAX_FACTOR):
            reader.problem(factor_node, factor_path, f"factor: it must be from 1 to {MAX_FACTOR}")
            factor = 2.0
        return reader.integer(*inner.get("limit"), 0, 0, MAX_RETRIES), msgspec.structs.replace(
            retry, backoff=reader.duration(*inner.get("backoff"), 0.0, MAX_SECONDS), factor=float(factor or 2.0),
            max=reader.duration(*inner.get("max"), 0.0, MAX_SECONDS))

    def _retry_on(self, node: Node | None, path: str) -> Retry:
        if node is None:
            return Retry()
        words: list[str] = []
        for i, item in enumerate(node.items if node.kind == "list" else [node]):
            where = f"{path}[{i}]" if node.kind == "list" else path
            word = self.reader.text(item, where, "", "exit codes, signals, timeout or any")
            try:
                retry_on([word] if word else [])
            except ValueError as error:
                self.reader.problem(item, where, f"retry_on: {error}")
            else:
                words += [word] if word else []
        if node.kind == "list" and not node.items:
            self.reader.problem(node, path, "retry_on: the list is empty; name what to try again after")
        return retry_on(words)

    # -- what it needs ---------------------------------------------------------------------------------------------

    def _request(self, fields: Fields, name: str) -> Request:
        reader = self.reader
        per, per_path = fields.get("per")
        per_node = per is not None and reader.choice(per, per_path, "node", ("node",)) == "node"
        inner = reader.fields(*fields.get("resources"), RESOURCES, "resources", open_ended=True)
        if inner is None:
            return Request(per_node=per_node)
        given = (value for _, value in inner.node.entries.values())
        reader.remember(f"job {name}", next((value for value in given if value.source), inner.node))
        consumables: dict[str, int] = {}
        for named, (key, value) in inner.node.entries.items():
            if named in RESOURCES:
                continue
            path = f"{inner.path}.{named}"
            meant = _ELSEWHERE.get(named.lower()) or nearest(named, RESOURCES, cutoff=0.75)
            if meant:
                reader.problem(key, path, f"resources has no key {shorten(named)}; did you mean {meant!r}?")
            elif not _PARAMETER.fullmatch(named):
                reader.problem(key, path, f"{shorten(named)} cannot name a resource: use letters, digits, '_' and '-'")
            else:
                consumables[named] = read_amount(reader, value, path)
        return Request(
            tasks=reader.integer(*inner.get("tasks"), 1, 1, MAX_TASKS),
            cores=self._cores(*inner.get("cores"), per_node),
            gpus=reader.integer(*inner.get("gpus"), 0, 0, MAX_COUNT),
            nodes=reader.integer(*inner.get("nodes"), 0, 0, MAX_COUNT),
            memory=reader.size(*inner.get("memory"), 0, MAX_MEMORY),
            exclusive=reader.boolean(*inner.get("exclusive")),
            layout=reader.choice(*inner.get("layout"), "pack", ("pack", "spread")),
            per_node=per_node, consumables=consumables)

    def _cores(self, node: Node | None, path: str, per_node: bool) -> int:
        if node is not None and node.kind == "scalar" and as_int(node.text) == 0 and not per_node:
            # only what watches a node beside everything else may do without
            self.reader.problem(node, path, "cores: only a job with 'per: node' may have 0; it must be at least 1")
            return 1
        return self.reader.integer(node, path, 1, 0 if per_node else 1, MAX_COUNT)

    def _after(self, node: Node | None, path: str) -> tuple[Dependency, ...]:
        if node is None:
            return ()
        kinds: dict[str, tuple[str, str]] = {}
        for i, item in enumerate(node.items if node.kind == "list" else [node]):
            where = f"{path}[{i}]" if node.kind == "list" else path
            if item.kind == "mapping":
                found = [(key, self._kind(value, f"{where}.{name}"))
                         for name, (key, value) in item.entries.items()]
            else:
                name = self.reader.text(item, where, "", "the name of a job")
                found = [(item, ("ok", "ok"))] if name else []
            for place, kind in found:
                if kinds.setdefault(place.text, kind) != kind:
                    self.reader.problem(place, where, f"after: job {shorten(place.text)} is named twice, with "
                                        "different conditions; keep one")
        return tuple(Dependency(group, kind, on=on) for group, (kind, on) in kinds.items())

    def _kind(self, node: Node, path: str) -> tuple[str, str]:
        """(kind, how each element must have ended)."""
        if node.kind == "mapping":
            inner = self.reader.fields(node, path, ("each",), "after")
            value, where = inner.get("each") if inner is not None else (None, path)
            if inner is not None and value is None and not node.entries:
                self.reader.problem(node, path, "after: write each, ok, any, not_ok, or {each: any}")
            return "each", self.reader.choice(value, where, "ok", KINDS[:3])
        if node.kind == "scalar" and node.text in _KIND_WORDS:
            self.reader.problem(node, path, f"after: write {_KIND_WORDS[node.text]} for {node.text}")
            return "ok", "ok"
        return self.reader.choice(node, path, "ok", KINDS), "ok"

    def _duration(self, node: Node | None, path: str) -> str:
        """How long it runs in a simulation, as written."""
        text = self.reader.text(node, path, "", "a duration or a distribution")
        try:
            if text:
                parse_distribution(text)
        except DurationError as error:
            assert node is not None
            self.reader.problem(node, path, f"duration: {error}")
        return text

    def _begin(self, node: Node | None, path: str) -> tuple[float, float]:
        """(Unix seconds, seconds from submission)."""
        what = "a time such as 2026-11-23T08:00, or +10m from submission"
        text = self.reader.text(node, path, "", what)
        found = as_moment(text) if text else (0.0, 0.0)
        if found is None or found[1] > MAX_SECONDS:
            assert node is not None
            self.reader.problem(node, path, f"begin_time: expected {what}, not {node.describe()}")
            return 0.0, 0.0
        return found

    # -- where it runs ---------------------------------------------------------------------------------------------

    def _cwd(self, fields: Fields, names: Collection[str]) -> str:
        node, path = fields.get("cwd")
        if node is None:
            node, path = self.cwd, "$.cwd"
        return self.reader.template(node, path, names, "a directory")

    def environment(self, node: Node | None, path: str) -> dict[str, tuple[Node, str, str]]:
        """Name to (place, path, template) of an ``env`` mapping."""
        if node is None:
            return {}
        if node.kind != "mapping":
            self.reader.problem(node, path, f"env: expected a mapping of names to values, not {node.describe()}")
            return {}
        if len(node.entries) > MAX_ENV:
            self.reader.problem(node, path, f"env: more than {MAX_ENV} variables")
            return {}
        found: dict[str, tuple[Node, str, str]] = {}
        for name, (key, value) in node.entries.items():
            where = f"{path}.{name}"
            if not name or "=" in name:
                self.reader.problem(key, where, f"env: {shorten(name)} cannot name a variable: it is empty or has '='")
            elif name.startswith("MPIFLUX_"):
                self.reader.problem(key, where, f"env: {name} is reserved: mpiflux sets the MPIFLUX_ variables itself")
            elif value.is_empty:
                found[name] = value, where, ""
            else:
                found[name] = value, where, self.reader.text(value, where)
        return found

    def _secret_names(self, node: Node | None, path: str) -> dict[str, tuple[Node, str]]:
        """Name to (place, path) of a list of variables."""
        found: dict[str, tuple[Node, str]] = {}
        if node is None:
            return found
        for i, item in enumerate(node.items if node.kind == "list" else [node]):
            where = f"{path}[{i}]" if node.kind == "list" else path
            name = self.reader.text(item, where, "", "the name of a variable of mpiflux's environment")
            if not name:
                continue
            if not _VARIABLE.fullmatch(name) or name.startswith("MPIFLUX_"):
                # not shown: somebody may have written the value
                self.reader.problem(item, where, "secrets: a name is needed, of letters, digits and '_', not beginning "
                                    "with MPIFLUX_; the value is taken from the environment of mpiflux")
            else:
                found[name] = item, where
        if len(found) > MAX_ENV:
            self.reader.problem(node, path, f"secrets: more than {MAX_ENV} variables")
        return found

    def _secrets(self, fields: Fields, name: str, env: Collection[str]) -> tuple[str, ...]:
        found = {**self.secrets, **self._secret_names(*fields.get("secrets"))}
        for secret, (place, where) in found.items():
            if secret in env:
                self.reader.problem(place, where, f"secrets: {secret} is in env too, whose values are "
                                    "stored: remove it there")
            self.reader.remember(f"secrets {name}", place)
        return tuple(found)

    def _merged_env(self, fields: Fields, names: Collection[str], name: str) -> dict[str, str]:
        own = self.environment(*fields.get("env"))
        merged: Mapping[str, tuple[Node, str, str]] = {**self.env, **own}
        for node, path, text in merged.values():
            self.reader.check_template(node, path, text, names)
        if len(merged) > MAX_ENV:
            self.reader.problem(fields.node_of("env"), f"{fields.path}.env", f"env: more than {MAX_ENV} variables")
        return {variable: text for variable, (_, _, text) in merged.items()}
