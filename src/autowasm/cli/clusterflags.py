"""The commands of `wasmc` that read a cluster, and their flags: explain, plan and rollout.

Invariant: this module imports nothing heavier than argparse, because `wasmc --help` imports it.
"""

import argparse
from pathlib import Path
from typing import Any, Final

from autowasm.cli import completion
from autowasm.cli.moduleflags import add_checks, add_registry
from autowasm.cli.options import (
    CLUSTER_DOMAIN,
    KUBECONFIG,
    SERVICE_NAME,
    SERVICE_NAMESPACE,
    SERVICE_PORT,
    add_json,
)
from autowasm.units import parse_duration

_STATUSES: Final = (
    "Exit status: 0 no errors (with --strict: no errors and no warnings), 1 otherwise, 2 usage error, or the API server "
    "cannot be queried."
)
_ROLLOUT_STATUSES: Final = (
    "Exit status: 0 done, 1 failed: the rollout was aborted, the timeout expired, or the command was not carried out; 2 usage error, or "
    "the API server cannot be queried."
)
_COMMANDS: Final = {
    "pause": (
        "pause the rollout in its current step",
        "The Pods keep the filters that they have. They are still watched: a Pod that fails aborts the rollout.",
    ),
    "resume": (
        "continue a paused rollout",
        "The step continues, with a new deadline.",
    ),
    "promote": (
        "give all Pods the new filter now",
        "Ends the rollout, even an aborted one: all Pods get the new filter at once, without a proof that it runs.",
    ),
    "abort": (
        "return all Pods to the previous filter",
        "Ends the rollout. wasmer does not try this generation again by itself.",
    ),
    "retry": (
        "start an aborted rollout again",
        "The rollout begins again at its first step.",
    ),
}


def add_explain(commands: Any) -> None:
    """Add the command `wasmc explain`."""
    explain = commands.add_parser(
        "explain",
        help="diagnose a live AutoWasm, and suggest remedies",
        description="Checks a live AutoWasm step by step: its source, module, EnvoyFilter and Pods. Reports the result of each check and, "
        "for each problem, a remedy. Objects that your account may not read are reported as not checked. Nothing is written.",
        epilog=_STATUSES,
    )
    name = explain.add_argument(
        "name",
        metavar="[NAMESPACE/]NAME",
        nargs="?",
        help="the AutoWasm (default: all of the namespace, showing only their problems)",
    )
    name.completer = completion.autowasm_names  # read by argcomplete
    explain.add_argument(
        "-A", "--all-namespaces", action="store_true", help="all AutoWasms of the cluster"
    )
    explain.add_argument(
        "--no-source", action="store_true", help="do not query the registry from this machine"
    )
    explain.add_argument(
        "--fetch", action="store_true", help="also download and check the module on this machine"
    )
    _add_cluster_flags(explain)
    add_registry(explain)


def add_plan(commands: Any) -> None:
    """Add the command `wasmc plan`."""
    plan = commands.add_parser(
        "plan",
        help="show the EnvoyFilters that wasmer would write for a file",
        description="Checks the AutoWasms in FILE, or in the YAML and JSON files of a folder, and resolves their sources with your own login (or that of spec.secret, if you may "
        "read it). Shows the exact EnvoyFilters, their differences from the live ones, the Pods that they would select, and "
        "the problems that wasmc explain would report.",
        epilog=_STATUSES,
    )
    plan.add_argument(
        "-f",
        "--file",
        type=Path,
        metavar="FILE|DIR",
        help="YAML or JSON, parsed as by kubectl; -: standard input",
    )
    plan.add_argument(
        "path", type=Path, nargs="?", metavar="FILE", help="the file or folder, without -f"
    )
    plan.add_argument("--offline", action="store_true", help="do not query a cluster")
    plan.add_argument(
        "--policy-file",
        type=Path,
        metavar="FILE",
        help="policy file of wasmer's operator: the allowed sources, and the limits for the rollouts of a namespace (default: none)",
    )
    _add_cluster_flags(plan)
    add_registry(plan)


def _add_namespace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n",
        "--namespace",
        metavar="NAME",
        help="namespace of the AutoWasm (default: the context's)",
    )


def _add_kubeconfig(cluster: "argparse._ArgumentGroup") -> None:
    shown = "$KUBECONFIG, ~/.kube/config, the Pod's service account"
    KUBECONFIG._replace(default_shown=shown).declare_read(cluster)
    cluster.add_argument(
        "--context", metavar="NAME", help="context of the kubeconfig (default: its current context)"
    )


def _add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    _add_namespace(parser)
    add_json(parser)
    parser.add_argument("--strict", action="store_true", help="also fail on warnings")
    add_checks(parser, quiet="no warnings about the login or the module check")
    cluster = parser.add_argument_group("cluster")
    _add_kubeconfig(cluster)
    SERVICE_NAME.declare_read(cluster)
    SERVICE_NAMESPACE._replace(default="istio-system").declare_read(cluster)
    SERVICE_PORT.declare_read(cluster)
    CLUSTER_DOMAIN._replace(help="DNS domain of the cluster").declare_read(cluster)


def add_rollout(commands: Any) -> None:
    """Add the commands `wasmc rollout …`."""
    rollout = commands.add_parser(
        "rollout",
        help="follow and control the staged rollout of an AutoWasm",
        description="Follows and controls the staged rollout of an AutoWasm with spec.rollout.",
    )
    rollout.elsewhere = {"undo": "`wasmc rollout abort NAME`"}
    verbs = rollout.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    status = verbs.add_parser(
        "status",
        help="show steps, Pods, failures, and what the rollout waits for",
        description="Shows steps, Pods, failures, and what the rollout waits for. With -w it follows the rollout to its end: in place on a "
        "terminal, otherwise one line for each change. A spec change whose rollout has not begun counts as unfinished.",
        epilog=f"{_ROLLOUT_STATUSES} Without -w, a rollout in progress is not a failure.",
    )
    status.add_argument(
        "-w", "--watch", action="store_true", help="follow the rollout until it ends"
    )
    status.add_argument(
        "--timeout",
        type=_duration,
        default=0.0,
        metavar="DURATION",
        help="with -w: exit with status 1 after this time (default: 0, never)",
    )
    add_json(status, "print the rollout as JSON; with -w one line for each change")
    _add_name(status)
    history = verbs.add_parser(
        "history",
        help="list the filters and modules that wasmer knows",
        description="Lists the filters of the rollout and of the EnvoyFilter, the targets that were aborted, and the modules that were "
        "published before.",
        epilog=_ROLLOUT_STATUSES,
    )
    add_json(history)
    _add_name(history)
    for verb, (text, description) in _COMMANDS.items():
        command = verbs.add_parser(
            verb,
            help=text,
            description=f"{description} Writes the annotation wasm.tcm.io/rollout, for the generation that is being rolled out only.",
            epilog=_ROLLOUT_STATUSES,
        )
        command.add_argument(
            "--wait",
            type=_duration,
            default=30.0,
            metavar="DURATION",
            help="time to wait for wasmer to carry it out; 0: do not wait (default: 30s)",
        )
        _add_name(command)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the AutoWasm")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print only the result and errors"
    )
    _add_namespace(parser)
    _add_kubeconfig(parser.add_argument_group("cluster"))


def _duration(text: str) -> float:
    """Seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
