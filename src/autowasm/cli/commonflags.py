"""The flags of `wasmc` that say what the Envoys offer to a module, as every command that checks one has them.

`wasmer` reads the same flags from its own table (`flags.py`). Invariant: both split and read a value by the same rules.
"""

import argparse
from collections.abc import Sequence
from typing import Any, TypedDict

from autowasm.envoyversion import OLDEST_ENVOY, EnvoyVersion, envoy_version

ALLOW_IMPORT_HELP = "a host function (module.name) that your Envoys offer besides the standard ones; repeatable, takes commas"
ENVOY_VERSION_HELP = "the oldest Envoy that runs the modules: they may import what it offers. From 1.39 on Envoy has all of WASI preview 1"


class EnvoyOffer(TypedDict):
    """What `inspect_module` takes."""

    allow_imports: frozenset[str]
    envoy: EnvoyVersion


def add_module_flags(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--allow-import",
        action=_AppendItems,
        default=[],
        metavar="NAME",
        help=ALLOW_IMPORT_HELP,
    )
    parser.add_argument(
        "--envoy-version",
        type=_version,
        default=OLDEST_ENVOY,
        metavar="VERSION",
        help=f"{ENVOY_VERSION_HELP} (default: {OLDEST_ENVOY})",
    )


def offered(arguments: argparse.Namespace) -> EnvoyOffer:
    """What the flags say."""
    return EnvoyOffer(
        allow_imports=frozenset(arguments.allow_import), envoy=arguments.envoy_version
    )


class _AppendItems(argparse.Action):
    """Adds each part of a value with commas."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        _option: str | None = None,
    ) -> None:
        parts = (part.strip() for part in str(values).split(","))
        setattr(
            namespace,
            self.dest,
            [*getattr(namespace, self.dest), *(part for part in parts if part)],
        )


def _version(text: str) -> EnvoyVersion:
    try:
        return envoy_version(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
