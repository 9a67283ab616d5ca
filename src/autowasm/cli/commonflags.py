"""The flags about Envoy's host functions that every `wasmc` command with a module check has.

`wasmer` reads the same flags from its own table (`flags.py`). Invariant: both split and parse a value by the same rules.
"""

import argparse
from collections.abc import Sequence
from typing import Any, TypedDict

from autowasm.envoyversion import OLDEST_ENVOY, EnvoyVersion, envoy_version

ALLOW_IMPORT_HELP = "host function (MODULE.NAME) that your Envoys provide in addition to the standard ones; may be repeated or comma-separated"
ENVOY_VERSION_HELP = "oldest Envoy version that runs the modules; modules may import its host functions. Envoy 1.39 and later provide all of WASI preview 1"


class EnvoyOffer(TypedDict):
    """Keyword arguments of `inspect_module`."""

    allow_imports: frozenset[str]
    envoy: EnvoyVersion


def add_module_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags to the parser."""
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
    """The values of the flags."""
    return EnvoyOffer(
        allow_imports=frozenset(arguments.allow_import), envoy=arguments.envoy_version
    )


class _AppendItems(argparse.Action):
    """Appends each part of a comma-separated value."""

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
