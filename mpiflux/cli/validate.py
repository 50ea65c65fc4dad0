"""``validate``: everything that is wrong with a workflow file."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

from mpiflux.cli.console import plural, say, tell
from mpiflux.cli.parser import USAGE, Parser, assignment


def define(name: str, parser: Parser) -> Callable[[Namespace], int]:
    parser.examples("mpiflux validate workflow.yaml", "mpiflux validate workflow.yaml --set samples=200")
    parser.add_argument("workflow", metavar="WORKFLOW", help="the workflow file, YAML or JSON")
    parser.add_argument("--set", metavar="NAME=VALUE", type=assignment, action="append", default=[],
                        dest="overrides", help="as for run; repeatable")
    return validate


def validate(args: Namespace) -> int:
    from mpiflux.spec import WorkflowError, load

    try:
        workflow = load(args.workflow, overrides=dict(args.overrides))
    except WorkflowError as error:
        tell(str(error))
        return USAGE
    say(f"{args.workflow}: ok, {plural(workflow.total, 'job')} in {plural(len(workflow.groups), 'group')}")
    return 0
