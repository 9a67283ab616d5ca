"""The flags of `wasmc run`, `wasmc test` and `wasmc inspect --start`.

Invariant: this module imports nothing heavier than argparse, as `wasmc.py`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from autowasm.cli.options import ALLOW_IMPORT, ENVOY_VERSION, add_json

AddFlags = Callable[[argparse.ArgumentParser], None]

_CONFIG: Final = (
    "the filter's configuration: @FILE (@-: standard input), or the name of an existing file, whose bytes are passed on as they "
    "are; any other value is the configuration itself, text or JSON"
)
_RUN_STATUSES: Final = (
    "Exit status: 0 the module starts and does not fail, whatever it answers; 1 it does not start or it fails, where Envoy answers "
    "503 (with failStrategy FAIL_OPEN it lets requests pass without the filter), or it cannot be fetched, or with --engine envoy the results "
    "differ; 2 usage error."
)
_TEST_STATUSES: Final = "Exit status: 0 all cases passed, 1 a case failed or a module cannot be loaded, 2 usage error or an invalid suite, also if -k selects no case."


def add_run(commands: Any, add_checks: AddFlags, add_registry: AddFlags) -> None:
    """Add the command `wasmc run`."""
    run = commands.add_parser(
        "run",
        help="show what a filter does to a request",
        description="Starts a module with its configuration on this machine, lets a request pass through it as Envoy would, and "
        "shows what the service and the client get: added (+), changed (~) and removed (-) headers, local replies, logs, metrics "
        "and callouts. Nothing else runs: the service and the clusters that the filter calls answer what you give.",
        epilog=_RUN_STATUSES,
    )
    run.add_argument(
        "module",
        nargs="?",
        metavar="FILE|REF",
        help="the module: a file (-: standard input) or an image; with -f optional",
    )
    run.add_argument(
        "-f",
        "--file",
        type=Path,
        metavar="AUTOWASM.yaml",
        help="take configuration, environment, root id and failStrategy from an AutoWasm, exactly as Envoy gets them, and the module "
        "from its source unless FILE|REF is given; -: standard input",
    )
    run.add_argument(
        "--name",
        metavar="[NAMESPACE/]NAME",
        help="the AutoWasm in the file of -f, if it has several",
    )
    _add_plugin(run)
    add_json(run)
    run.add_argument(
        "--log-level",
        choices=("trace", "debug", "info", "warning", "error", "critical"),
        default="info",
        help="least level of the filter's log lines that Envoy writes (default: info)",
    )
    request = run.add_argument_group("request")
    request.add_argument(
        "--request",
        default="GET /",
        metavar="'METHOD /path'",
        help="the request; a URL in the place of the path sets :authority and :scheme (default: GET /)",
    )
    request.add_argument(
        "-H",
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="header of the request; may be repeated",
    )
    request.add_argument(
        "--body", metavar="TEXT|@FILE", help="body of the request (@-: standard input)"
    )
    service = run.add_argument_group("service behind Envoy")
    service.add_argument(
        "--response-status",
        type=_status,
        default=200,
        metavar="STATUS",
        help="status that the service answers (default: 200)",
    )
    service.add_argument(
        "--response-header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="header of the service's response; may be repeated",
    )
    service.add_argument("--response-body", metavar="TEXT|@FILE", help="body of the response")
    around = run.add_argument_group("around the filter")
    around.add_argument(
        "--property",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="property such as source.address=10.0.0.1:5000; a value that is JSON (a number, true, a list) has that type; a backslash "
        "before a dot makes it part of a name; may be repeated",
    )
    around.add_argument(
        "--call",
        action="append",
        default=[],
        metavar="CLUSTER=FILE",
        help="answer to callouts of the filter to CLUSTER. FILE is an HTTP response as text (status line, headers, empty line, body, "
        "as curl -i prints it), or, named .yaml or .json, an answer or a list of answers as in a suite of wasmc test; may be "
        "repeated",
    )
    around.add_argument(
        "--tcp",
        action="store_true",
        help="a TCP connection in the place of a request: --body is what the client sends, --response-body what the service sends",
    )
    around.add_argument(
        "--engine",
        default="sandbox",
        metavar="sandbox|envoy[=PATH]",
        help="envoy: also send the request through a real Envoy on this machine (PATH, else envoy on $PATH), and show what it does "
        "otherwise; the sandbox then does as that release. Not with --tcp and --property (default: sandbox)",
    )
    add_checks(run)
    add_registry(run)


def add_test(commands: Any) -> None:
    """Add the command `wasmc test`."""
    test = commands.add_parser(
        "test",
        help="run the tests of a filter",
        description="Runs the cases of each suite: each starts a new instance of the filter, sends requests, and compares what the service and the "
        "client get with what is expected. The format: docs/reference/wasmc-test.md.",
        epilog=_TEST_STATUSES,
    )
    test.add_argument("suites", nargs="+", type=Path, metavar="SUITE.yaml")
    test.add_argument(
        "-k",
        dest="expression",
        metavar="EXPR",
        help="run only cases whose name has these words, such as 'header and not (refuse or trap)'",
    )
    test.add_argument(
        "--module",
        type=Path,
        metavar="FILE",
        help="the module, in the place of those of the suites",
    )
    test.add_argument(
        "--engine",
        default="sandbox",
        metavar="sandbox|envoy[=PATH]",
        help="envoy: also run each case in a real Envoy on this machine (PATH, else envoy on $PATH); a case fails if Envoy does something "
        "else than the sandbox, which then does as that release. Cases with properties or gRPC answers run in the sandbox only "
        "(default: sandbox)",
    )
    test.add_argument("--junit", type=Path, metavar="FILE", help="write the results as JUnit XML")
    ALLOW_IMPORT.declare_read(test)
    shown = f"envoyVersion of the suite, else {ENVOY_VERSION.default}"
    ENVOY_VERSION._replace(default=None, default_shown=shown).declare_read(test)
    test.add_argument(
        "-q", "--quiet", action="store_true", help="print only failures and the summary"
    )


def add_start(parser: argparse.ArgumentParser) -> None:
    """Add `--start` and its flags to `wasmc inspect`."""
    group = parser.add_argument_group("start")
    group.add_argument(
        "--start",
        action="store_true",
        help="also start the module on this machine and let a plain request pass, as wasmer does before it publishes a filter",
    )
    _add_plugin(group)


def _add_plugin(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument("--config", metavar="FILE|JSON|TEXT", help=_CONFIG)
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="environment variable of the filter; may be repeated",
    )
    parser.add_argument("--root-id", metavar="ID", help="root id of the filter")


def _status(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 200 <= int(text[:9]) <= 599:
        raise argparse.ArgumentTypeError(f"must be from 200 to 599, not {text[:40]!r}")
    return int(text)
