"""The command line: what it takes, what it says, and its exit status."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import mpiflux
from mpiflux.cli import console, main
from mpiflux.cli.main import COMMANDS, GROUPS
from mpiflux.cli.ranks import OURS, without
from mpiflux.cli.run import options_of

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "commands.md").read_text()


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    """In an empty directory, under no launcher and in no job."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("MPIFLUX_", "PMI_", "SLURM_", "OMPI_", "MPI_LOCAL")):
            monkeypatch.delenv(name)


def run(capsys, *argv):
    status = main.main(list(argv))
    out, err = capsys.readouterr()
    return status, out, err


def parse(line):
    """The arguments of a documented line, launchers left out."""
    words = shlex.split(line.partition(" > ")[0])
    return main.parse(words[words.index("mpiflux") + 1:])


def code_lines(text):
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        yield from block.splitlines()


def test_version_is_that_of_the_package(capsys):
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{mpiflux.__version__}"' in project
    assert run(capsys, "--version") == (0, f"mpiflux {mpiflux.__version__}\n", "")


def test_help_names_every_command(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0 and all(name in out for name in COMMANDS)
    assert run(capsys)[:2] == (2, out)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_that_parses(capsys, name):
    status, out, _ = run(capsys, *name.split(), "--help")
    examples = out.partition("example")[2].splitlines()[1:]
    assert status == 0 and examples
    for line in examples:
        _, args = parse(line)
        assert args.parser.prog == f"mpiflux {name}"


@pytest.mark.parametrize("line", list(code_lines(DOCS)))
def test_every_documented_line_parses(line):
    parse(line)


WORDS = re.findall(r"`(mpiflux [^`]*)`", (ROOT / "docs" / "words.md").read_text())


def test_every_word_of_ours_in_the_table_of_words_is_one():
    assert len(WORDS) > 50
    for line in WORDS:
        parse(line.replace("NS", "ns").replace("\\|", "|"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name):
    with pytest.raises(SystemExit):
        main.parse([*name.split(), "--help"])
    required = {"run": ["w.yaml"], "validate": ["w.yaml"], "kvs get": ["k"], "start": ["true"], "submit": ["true"],
                "bulksubmit": ["true"], "kvs put": ["k", "1"], "kvs rm": ["k"], "job urgency": ["1", "2"],
                "pub": ["t"], "simulate": ["--cluster", "1x(1c)"]}.get(
        name, ["1"] if name.startswith("job ") else [])
    _, args = main.parse([*name.split(), *required])
    for action in args.parser._actions:
        for option in action.option_strings:
            assert option in ("-h", "--help") or f"`{option}" in DOCS or f" {option}" in DOCS, option


@pytest.mark.parametrize("group", GROUPS)
def test_groups_have_a_help(capsys, group):
    status, out, _ = run(capsys, group, "--help")
    assert status == 0 and all(name in out for name in COMMANDS if name.startswith(group + " "))


@pytest.mark.parametrize(("line", "said"), [
    ("rnu w.yaml", "did you mean 'run'"), ("jbos", "did you mean 'jobs'"), ("job shw 1", "did you mean 'show'"),
    ("kvs xyzzy", "there are: get, ls"), ("run --dry-rn w.yaml", "did you mean '--dry-run'"),
    ("run", "WORKFLOW"), ("--ranks 2 w.yaml", "after the command"), ("--run-dir d", "after the command"),
    ("--run-dir", "after the command"), ("--run-dir d xyzzy", "no command 'xyzzy'"),
    ("run w.yaml x.yaml", "one argument too many"),
    ("run w.yaml --ranks 0", "whole number"), ("run w.yaml --time-limit soon", "'soon' is not a duration"),
    ("run w.yaml --set n", "'n' is not NAME=VALUE"), ("run w.yaml --fail-fast --keep-going", "not allowed with"),
    ("run w.yaml --progress fancy", "fancy"), ("run w.yaml --res", "no option --res"),
])
def test_a_wrong_line_is_explained(capsys, line, said):
    status, out, err = run(capsys, *line.split())
    assert (status, out) == (2, "") and said in err and err.startswith("mpiflux: ")


def test_only_rank_0_speaks_of_a_line_that_all_ranks_have(capsys, monkeypatch):
    monkeypatch.setenv("MPIFLUX_LAUNCH_SIZE", "4")
    for rank in range(4):
        monkeypatch.setenv("MPIFLUX_LAUNCH_RANK", str(rank))
        status, _, err = run(capsys, "run", "--nonsense")
        assert status == 2 and bool(err) == (rank == 0)
    # a job's own call of a query command is nobody else's
    assert run(capsys, "jobs", "--nonsense")[2]


def test_a_file_means_run(tmp_path):
    (tmp_path / "flow").write_text("")
    for first in ("w.yaml", "w.json", "sub/w.yml", "flow"):
        _, args = main.parse([first, "--dry-run"])
        assert args.parser.prog == "mpiflux run" and args.workflow == first and args.dry_run


@pytest.mark.parametrize(("line", "prog"), [
    ("--run-dir d jobs", "jobs"), ("--run-dir=d job show 12", "job show"), ("--run-dir d kvs get a", "kvs get"),
    ("--run-dir d submit -n 2 true --run-dir other", "submit"), ("--run-dir d w.yaml", "run"),
    ("--run-dir d start -- sh -c true", "start"),
])
def test_a_run_directory_may_stand_before_the_command(line, prog):
    _, args = main.parse(line.split())
    assert (args.parser.prog, args.run_dir) == (f"mpiflux {prog}", "d")


def test_all_options_of_run_arrive():
    _, args = main.parse(shlex.split(
        "w.yaml --run-dir d --resume --hierarchy 4x8 --policy fcfs --set n=3 --set m=a=b --dry-run --fail-fast "
        "--time-limit 1h30m --cores-per-node 64 --gpus-per-node 0 --exec null --sync 2 --progress none"))
    options = options_of(args)
    assert (options.workflow, options.run_dir, options.resume, options.hierarchy) == ("w.yaml", "d", True, "4x8")
    assert (options.policy, options.overrides, options.dry_run) == ("fcfs", {"n": "3", "m": "a=b"}, True)
    assert (options.fail_fast, options.time_limit, options.cores_per_node) == (True, 5400.0, 64)
    assert (options.gpus_per_node, options.null_exec, options.sync_window) == (0, True, 2.0)


def test_a_run_in_a_job_goes_on_when_the_job_begins_again(monkeypatch):
    for attempt, again in (("1", False), ("2", True), ("x", False)):
        monkeypatch.setenv("MPIFLUX_ATTEMPT", attempt)
        _, named = parse("mpiflux run w.yaml --run-dir d")
        _, unnamed = parse("mpiflux run w.yaml")
        assert (options_of(named).resume, options_of(unnamed).resume) == (again, False)


def test_ranks_get_the_line_without_ranks():
    assert without(["w.yaml", "--ranks", "4", "--set", "a=1"], OURS) == ["w.yaml", "--set", "a=1"]
    assert without(["--ranks=4", "w.yaml"], OURS) == ["w.yaml"]


def test_ranks_contradicting_a_launcher(capsys, monkeypatch):
    monkeypatch.setenv("MPIFLUX_LAUNCH_RANK", "0")
    monkeypatch.setenv("MPIFLUX_LAUNCH_SIZE", "2")
    status, _, err = run(capsys, "run", "w.yaml", "--ranks", "4")
    assert status == 2 and "leave --ranks away" in err


def test_validate(capsys, tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("variables: {n: 3}\njobs:\n  a:\n    command: echo {i}\n    parameters: {i: {range: '${n}'}}\n")
    bad.write_text("jobs:\n  a: {comand: x}\n  b: {command: 'echo {nope}', retries: -1}\n")
    assert run(capsys, "validate", str(good)) == (0, f"{good}: ok, 3 jobs in 1 group\n", "")
    assert "2,000 jobs" in run(capsys, "validate", str(good), "--set", "n=2000")[1]
    status, out, err = run(capsys, "validate", str(bad))
    assert (status, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) >= 3 and all(re.match(rf"{re.escape(str(bad))}:\d+:\d+: ", line) for line in lines)
    status, _, err = run(capsys, "validate", "absent.yaml")
    assert status == 2 and "absent.yaml" in err


@pytest.mark.parametrize("words", ["run x.yaml", "--version", "jobs --help"])
def test_starting_loads_little(words):
    code = f"""
import sys
before = set(sys.modules)
from mpiflux.cli import main
import mpiflux.instance.bootstrap as b
def decide(options, observer, tell):
    heavy = [m for m in ("rich", "sqlite3", "numpy", "yaml", "asyncio", "difflib") if m in sys.modules
             and m not in before]
    print("LOADED", heavy, file=sys.stderr)
    return 0
b.run_instance = decide
main.main({words.split()!r})
decide(None, None, None)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert set(re.findall("LOADED (.*)", done.stderr)) == {"[]"}, done.stderr


def test_import_mpiflux_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import mpiflux; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert set(re.findall(r"'([\w.]+)'", done.stdout)) <= {"mpiflux", "__future__"}, done.stdout


@pytest.mark.parametrize(("seconds", "text"), [
    (None, "-"), (0, "0ms"), (0.52, "520ms"), (0.9999, "1.00s"), (9.999, "10.0s"), (59.97, "1m00s"), (185, "3m05s"),
    (3599.6, "1h00m"), (7625, "2h07m"), (97300, "1d03h"), (-1, "0ms"),
])
def test_durations(seconds, text):
    assert console.duration(seconds) == text


def test_rates_and_what_stays_of_control_characters():
    assert [console.rate(x) for x in (1950.4, 99.96, 48.4, 0.05, 0)] == [
        "1,950 jobs/s", "100 jobs/s", "48.4 jobs/s", "3.0 jobs/min", "0.0 jobs/s"]
    assert console.printable("a\x1b[31m\tb\udcff") == "a [31m b\ufffd"
