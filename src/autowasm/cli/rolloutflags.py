"""The flags of `wasmc rollout`.

Invariant: this module imports nothing heavier than argparse, as `wasmc.py`.
"""

import argparse
from typing import Any, Final

from autowasm.cli.options import add_json
from autowasm.cli.trialflags import AddFlags
from autowasm.units import parse_duration

_STATUSES: Final = (
    "Exit status: 0 done, 1 failed: the rollout was aborted, the time is over, or the command was not carried out; 2 usage error, or "
    "the API server cannot be queried."
)
_COMMANDS: Final = {
    "pause": (
        "stop the rollout in its step",
        "The Pods keep the filters that they have. They are still watched: a Pod that fails aborts the rollout.",
    ),
    "resume": (
        "go on with a paused rollout",
        "The step goes on, with a new deadline.",
    ),
    "promote": (
        "give all Pods the new filter now",
        "Ends the rollout, also an aborted one: all Pods get the new filter at once, without a proof that it runs.",
    ),
    "abort": (
        "give all Pods the previous filter back",
        "Ends the rollout. wasmer does not try this generation again by itself.",
    ),
    "retry": (
        "start an aborted rollout again",
        "The rollout begins again at its first step.",
    ),
}


def add_rollout(commands: Any, add_cluster: AddFlags) -> None:
    """Add the commands `wasmc rollout …`. `add_cluster` adds the flags of namespace and kubeconfig."""
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
        "terminal, otherwise one line for each change. A change of the spec whose rollout has not begun counts as not done.",
        epilog=f"{_STATUSES} Without -w a rollout in progress is no failure.",
    )
    status.add_argument(
        "-w", "--watch", action="store_true", help="follow the rollout until it ends"
    )
    status.add_argument(
        "--timeout",
        type=_duration,
        default=0.0,
        metavar="DURATION",
        help="with -w: end with status 1 after this time (default: 0, never)",
    )
    add_json(status, "print the rollout as JSON; with -w one line for each change")
    _add_name(status, add_cluster)
    history = verbs.add_parser(
        "history",
        help="list the filters and modules that wasmer knows",
        description="Lists the filters of the rollout and of the EnvoyFilter, the targets that were aborted, and the modules that were "
        "published before.",
        epilog=_STATUSES,
    )
    add_json(history)
    _add_name(history, add_cluster)
    for verb, (text, description) in _COMMANDS.items():
        command = verbs.add_parser(
            verb,
            help=text,
            description=f"{description} Writes the annotation wasm.tcm.io/rollout, for the generation that is being rolled out only.",
            epilog=_STATUSES,
        )
        command.add_argument(
            "--wait",
            type=_duration,
            default=30.0,
            metavar="DURATION",
            help="wait so long for wasmer to carry it out; 0: do not wait (default: 30s)",
        )
        _add_name(command, add_cluster)


def _add_name(parser: argparse.ArgumentParser, add_cluster: AddFlags) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the AutoWasm")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print only the result and errors"
    )
    add_cluster(parser)


def _duration(text: str) -> float:
    """Seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
