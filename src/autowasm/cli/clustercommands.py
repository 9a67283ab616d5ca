"""The flags of `wasmc explain` and `wasmc plan`.

Not the commands. Invariant: imports argparse and nothing heavier, so `--help` is instant.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autowasm.cli.moduleflags import add_module_flags

_STATUSES = (
    "Exit status: 0 all right (warnings and notes included, unless --strict), 1 something is wrong, 2 wrong usage, or "
    "the API server cannot be asked."
)


def add_explain(commands: Any, add_registry: Callable[[argparse.ArgumentParser], None]) -> None:
    """`wasmc explain`."""
    explain = commands.add_parser(
        "explain",
        help="say what is right and wrong about a live AutoWasm, and what to do",
        description="Walks from the source of an AutoWasm over its module and EnvoyFilter to the Pods, and says of each link "
        "what is right, what is wrong and what to do. What your account may not read is said as not checked. Nothing is written.",
        epilog=_STATUSES,
    )
    explain.add_argument("name", metavar="NAME", help="the AutoWasm")
    explain.add_argument(
        "--no-source", action="store_true", help="do not ask the registry from this machine"
    )
    explain.add_argument(
        "--fetch", action="store_true", help="download and judge the module from here, too"
    )
    _add_common(explain)
    add_registry(explain)


def add_plan(commands: Any, add_registry: Callable[[argparse.ArgumentParser], None]) -> None:
    """`wasmc plan`."""
    plan = commands.add_parser(
        "plan",
        help="say what wasmer would write for a file, without writing anything",
        description="Checks the AutoWasms in FILE, asks their sources with your own login (or that of spec.secret, if you may "
        "read it), and shows the exact EnvoyFilters, how they differ from the live ones, the Pods that they would select, and "
        "what wasmc explain would find wrong.",
        epilog=_STATUSES,
    )
    plan.add_argument(
        "-f",
        "--file",
        type=Path,
        required=True,
        metavar="FILE",
        help="YAML or JSON, read as kubectl reads it; - for stdin",
    )
    plan.add_argument("--offline", action="store_true", help="ask no cluster")
    _add_common(plan)
    add_registry(plan)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", "--namespace", metavar="NAME", help="its namespace (default: the context's)"
    )
    parser.add_argument("--json", action="store_true", help="everything, as one JSON document")
    parser.add_argument("--strict", action="store_true", help="fail on warnings, too")
    add_module_flags(parser)
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="only the result and errors: no warnings of the login",
    )
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="default: $KUBECONFIG, ~/.kube/config, the Pod's service account",
    )
    cluster.add_argument("--context", metavar="NAME", help="a context of the kubeconfig")
    cluster.add_argument(
        "--service-name",
        metavar="NAME",
        default="wasmer",
        help="wasmer's Service (default: wasmer)",
    )
    cluster.add_argument(
        "--service-namespace",
        metavar="NAME",
        default="istio-system",
        help="where it is (default: istio-system)",
    )
    cluster.add_argument(
        "--service-port", type=int, metavar="PORT", default=8081, help="its port (default: 8081)"
    )
    cluster.add_argument(
        "--cluster-domain",
        metavar="DOMAIN",
        default="cluster.local",
        help="the cluster's (default: cluster.local)",
    )
