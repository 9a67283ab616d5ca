"""What wasmer's Pods were told: their arguments and environment, read by wasmer's own parser.

Not wasmer's flags (`flags.py`). Invariant: what cannot be read (an older wasmer's flag, a reference to another variable) means
"not known", never an error.
"""

import argparse
from typing import Any, NoReturn

from autowasm.cli import flags
from autowasm.errors import UsageError
from autowasm.explain.facts import ServerFact
from autowasm.explain.objects import Pod

_MODE = "controller"


class _Unreadable(Exception):
    """The arguments are not those of this version."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, add_help=False, **options)

    def error(self, message: str) -> NoReturn:
        raise _Unreadable(message)


def server_of(pod: Pod) -> ServerFact | None:
    """From the container that runs `wasmer controller`; None if there is none, or it is not understood."""
    for container in pod.spec.containers:
        words = [*(container.command or ()), *(container.args or ())]
        if _MODE not in words:
            continue
        parser = _Parser()
        flags.declare(parser, _MODE)
        variables = {one.name: one.value for one in container.env or () if one.value}
        try:
            arguments = parser.parse_args(words[words.index(_MODE) + 1 :])
            arguments.mode = _MODE
            settings = flags.settings_from(
                arguments, environment=variables, pod_namespace=lambda: pod.metadata.namespace
            )
        except (_Unreadable, UsageError):
            return None
        if settings.cluster is not None:
            return ServerFact(known=True, envoy=settings.envoy, cluster=settings.cluster)
    return None
