"""Option: one flag, with its name, type, default and help; and the options that `wasmer` and `wasmc` have in common.

`wasmerflags.py` has the other options of wasmer, `moduleflags.py` and `clusterflags.py` those of wasmc. Invariants: an option of both programs is
declared here, once; this module imports nothing heavier than argparse, because `wasmc --help` imports it.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypedDict

from autowasm.envoyversion import OLDEST_ENVOY, EnvoyVersion, envoy_version

ENVIRONMENT_PREFIX = "WASMER_"


class Option(NamedTuple):
    """One row of a table of flags. `default_shown` replaces the default in the help. No dataclass: its module imports `inspect`."""

    flag: str
    metavar: str
    help: str
    read: Callable[[str], Any] = str
    """Raises ValueError."""
    default: Any = None
    default_shown: str = ""
    repeatable: bool = False
    """May be given several times and comma-separated; the value is a sequence."""
    switch: bool = False
    """A flag without a value, and `--no-…` if the default is true; in the environment true or false."""

    @property
    def name(self) -> str:
        """The name in argparse and `Values`."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """The name of wasmer's environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    def declare(self, group: "argparse._ActionsContainer") -> None:
        """Add the flag of wasmer. Its value stays text, which `Values` reads together with the environment."""
        if self.switch:
            group.add_argument(
                self.flag, action="store_const", const="true", help=self._described()
            )
            if self.default:
                group.add_argument(
                    self.flag.replace("--", "--no-", 1),
                    dest=self.name,
                    action="store_const",
                    const="false",
                    help=f"turn off {self.flag}",
                )
        else:
            action = "append" if self.repeatable else "store"
            group.add_argument(
                self.flag, metavar=self.metavar, help=self._described(), action=action
            )

    def declare_read(self, group: "argparse._ActionsContainer") -> None:
        """Add a flag without an environment variable, as in wasmc: argparse parses the value, and reports an invalid one."""

        def read(text: str) -> Any:
            try:
                if self.repeatable:
                    return [self.read(item) for item in items(text)]
                return self.read(text)
            except ValueError as error:
                raise argparse.ArgumentTypeError(str(error)) from error

        group.add_argument(
            self.flag,
            metavar=self.metavar,
            help=self._described(),
            type=read,
            action="extend" if self.repeatable else "store",
            default=list(self.default) if self.repeatable else self.default,
        )

    def _described(self) -> str:
        shown = self.default_shown
        if not shown and self.default not in {None, (), False, True}:
            shown = str(self.default)
        return f"{self.help} (default: {shown})" if shown else self.help


Groups = Mapping[str, tuple[Option, ...]]
"""Options by their heading in the help."""


def several(flag: str, metavar: str, text: str, read: Callable[[str], Any] = str) -> Option:
    """A repeatable Option."""
    return Option(flag, metavar, text, read, (), repeatable=True)


def items(text: str) -> list[str]:
    """The parts of a comma-separated value."""
    return [part for part in map(str.strip, text.split(",")) if part]


def whole(text: str, *, least: int = 1, most: int | None = None) -> int:
    """A whole number in a range. Raises ValueError."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError(f"must be a whole number, not {text[:40]!r}")
    number = int(text)
    if number < least or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"must be {bounds}, not {number}")
    return number


def port(text: str) -> int:
    """A TCP port. Raises ValueError."""
    return whole(text, most=65535)


ALLOW_IMPORT: Final = several(
    "--allow-import",
    "NAME",
    "host function (MODULE.NAME) that your Envoys provide in addition to the standard ones; may be repeated or comma-separated",
)
ENVOY_VERSION: Final = Option(
    "--envoy-version",
    "VERSION",
    "oldest Envoy version that runs the modules; modules may import its host functions. Envoy 1.39 and later provide all of WASI preview 1",
    envoy_version,
    OLDEST_ENVOY,
)
KUBECONFIG: Final = Option(
    "--kubeconfig",
    "FILE",
    "kubeconfig file",
    Path,
    default_shown="the service account of the Pod",
)
SERVICE_NAME: Final = Option("--service-name", "NAME", "wasmer's Service", default="wasmer")
SERVICE_NAMESPACE: Final = Option("--service-namespace", "NAME", "namespace of the Service")
SERVICE_PORT: Final = Option("--service-port", "PORT", "port of the Service", port, 8081)
CLUSTER_DOMAIN: Final = Option(
    "--cluster-domain",
    "DOMAIN",
    "DNS domain of the Kubernetes cluster",
    default="cluster.local",
)


class EnvoyOffer(TypedDict):
    """Keyword arguments of `inspect_module`."""

    allow_imports: frozenset[str]
    envoy: EnvoyVersion


def offered(arguments: argparse.Namespace) -> EnvoyOffer:
    """The values of ALLOW_IMPORT and ENVOY_VERSION in wasmc."""
    return EnvoyOffer(
        allow_imports=frozenset(arguments.allow_import), envoy=arguments.envoy_version
    )


def add_json(
    parser: argparse.ArgumentParser, text: str = "print everything as one JSON document"
) -> None:
    """Add --json, with this help."""
    parser.add_argument("--json", action="store_true", help=text)
