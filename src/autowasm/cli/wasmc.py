"""`wasmc`: pushes and pulls modules, inspects images and files, runs and tests filters; explains, plans and rolls out AutoWasms.

Reads flags and turns errors into exit statuses: 0 done, 1 failure, 2 usage, 130 and 143 interrupted. Invariants: standard
output holds only the result lines; this module imports nothing heavier than argparse, so `--help` is instant.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from autowasm.cli.options import (
    ALLOW_IMPORT,
    CLUSTER_DOMAIN,
    ENVOY_VERSION,
    KUBECONFIG,
    SERVICE_NAME,
    SERVICE_NAMESPACE,
    SERVICE_PORT,
)
from autowasm.cli.rolloutflags import add_rollout
from autowasm.cli.trialflags import add_run, add_start, add_test
from autowasm.cli.version import ShowVersion

_STATUSES = (
    "Exit status: 0 no errors (with --strict: no errors and no warnings), 1 otherwise, 2 usage error, or the API server "
    "cannot be queried."
)


def add_explain(commands: Any, add_registry: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the command `wasmc explain`."""
    explain = commands.add_parser(
        "explain",
        help="diagnose a live AutoWasm, and suggest remedies",
        description="Checks a live AutoWasm step by step: its source, module, EnvoyFilter and Pods. Reports the result of each check and, "
        "for each problem, a remedy. Objects that your account may not read are reported as not checked. Nothing is written.",
        epilog=_STATUSES,
    )
    explain.add_argument("name", metavar="NAME", help="name of the AutoWasm")
    explain.add_argument(
        "--no-source", action="store_true", help="do not query the registry from this machine"
    )
    explain.add_argument(
        "--fetch", action="store_true", help="also download and check the module on this machine"
    )
    _add_cluster_flags(explain)
    add_registry(explain)


def add_plan(commands: Any, add_registry: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the command `wasmc plan`."""
    plan = commands.add_parser(
        "plan",
        help="show what wasmer would write for a file, without writing anything",
        description="Checks the AutoWasms in FILE and resolves their sources with your own login (or that of spec.secret, if you may "
        "read it). Shows the exact EnvoyFilters, their differences from the live ones, the Pods that they would select, and "
        "the problems that wasmc explain would report.",
        epilog=_STATUSES,
    )
    plan.add_argument(
        "-f",
        "--file",
        type=Path,
        required=True,
        metavar="FILE",
        help="YAML or JSON, parsed as by kubectl; -: standard input",
    )
    plan.add_argument("--offline", action="store_true", help="do not query a cluster")
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


def _add_rollout_flags(parser: argparse.ArgumentParser) -> None:
    _add_namespace(parser)
    _add_kubeconfig(parser.add_argument_group("cluster"))


def _add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    _add_namespace(parser)
    _add_json(parser)
    parser.add_argument("--strict", action="store_true", help="also fail on warnings")
    _add_checks(parser, quiet="no warnings about the login or the module check")
    cluster = parser.add_argument_group("cluster")
    _add_kubeconfig(cluster)
    SERVICE_NAME.declare_read(cluster)
    SERVICE_NAMESPACE._replace(default="istio-system").declare_read(cluster)
    SERVICE_PORT.declare_read(cluster)
    CLUSTER_DOMAIN._replace(help="DNS domain of the cluster").declare_read(cluster)


_DESCRIPTION = """\
Pushes WebAssembly modules for Envoy to an OCI registry, pulls and inspects them. Runs and tests a filter without an Envoy.
Diagnoses an AutoWasm in a cluster, shows what applying one would change, and controls its rollout.

  wasmc push registry.example/team/filter:v1 -f filter.wasm
  wasmc pull registry.example/team/filter:v1
  wasmc inspect registry.example/team/filter:v1 --compat
  wasmc run filter.wasm --config '{"key": "value"}' -H 'x-user: alice'
  wasmc test suite.yaml
  wasmc plan -f autowasm.yaml
  wasmc explain NAME -n NAMESPACE
  wasmc rollout status NAME -n NAMESPACE -w
"""

_EPILOG = """\
The login is read from the files of Docker, podman, buildah, skopeo and CI systems, in this order: $DOCKER_AUTH_CONFIG (in
GitLab CI last), $DOCKER_CONFIG/config.json, $REGISTRY_AUTH_FILE (else ${XDG_RUNTIME_DIR}/containers/auth.json),
$XDG_CONFIG_HOME/containers/auth.json, ~/.docker/config.json (without $DOCKER_CONFIG), ~/.dockercfg. Credential helpers are
supported. --username with --password-stdin overrides all of these.

A registry on this machine (localhost, 127.x.x.x, [::1]) is accessed over plain HTTP unless it has TLS. Other registries are
accessed through $HTTPS_PROXY ($HTTP_PROXY with --plain-http) unless $NO_PROXY names them.

Exit status: 0 success, 1 failure (inspect: also a refused module; run: a module that does not start or fails; test: a failed case; explain and plan: also reported errors; rollout: an aborted rollout), 2 usage error.
WASMC_DEBUG=1 prints the traceback of an error.
"""

_BY_SIGINT = 130
"""128 + the signal's number, as in shells."""


class _Parser(argparse.ArgumentParser):
    """Reports usage errors in the form of all other errors. Accepts no abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.format_usage()}wasmc: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt as interrupt:
        return _interrupted(*interrupt.args)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands, for `main` and for docs/cli.md."""
    parser = _Parser(
        prog="wasmc",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_push(commands)
    _add_pull(commands)
    _add_inspect(commands)
    add_run(commands, _add_checks, _add_registry)
    add_test(commands)
    add_explain(commands, _add_registry)
    add_plan(commands, _add_registry)
    add_rollout(commands, _add_rollout_flags)
    return parser


def _add_push(commands: "argparse._SubParsersAction[_Parser]") -> None:
    push = commands.add_parser(
        "push",
        help="push a module",
        description="Checks that Envoy can load the module in FILE, and pushes it as REF.",
    )
    push.add_argument(
        "reference", metavar="REF", help="HOST[:PORT]/NAME[:TAG] (default tag: latest)"
    )
    push.add_argument(
        "-f",
        "--file",
        type=Path,
        required=True,
        metavar="FILE",
        help="the module (.wasm); -: standard input",
    )
    push.add_argument(
        "--format",
        choices=("artifact", "image", "cncf", "kwctl"),
        default="artifact",
        help="artifact (default): for Istio, Envoy Gateway and wasme; image: a container image with the module as "
        "plugin.wasm, for Istio and Envoy Gateway; cncf: for wkg; kwctl: for Kubewarden and wasm-to-oci; "
        "wasmer reads all of them",
    )
    push.add_argument(
        "--annotation",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="annotation of the manifest; may be repeated",
    )
    push.add_argument(
        "--source", metavar="URL", help="URL of the source code (org.opencontainers.image.source)"
    )
    push.add_argument(
        "--version",
        metavar="VERSION",
        help="version of the module (org.opencontainers.image.version)",
    )
    _add_common(push, force="also push a module that Envoy would not load")


def _add_pull(commands: "argparse._SubParsersAction[_Parser]") -> None:
    pull = commands.add_parser(
        "pull",
        help="pull a module",
        description="Pulls the module of REF, an artifact or container image, checks that Envoy can load it, and writes "
        "it to filter.wasm. An existing filter.wasm is replaced only after all checks; if the pull fails, it is not changed.",
    )
    pull.add_argument(
        "reference", metavar="REF", help="HOST[:PORT]/NAME[:TAG] or HOST[:PORT]/NAME@DIGEST"
    )
    pull.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for filter.wasm, created if absent (default: the current folder)",
    )
    _add_common(pull, force="also write a module that Envoy would not load")


def _add_inspect(commands: "argparse._SubParsersAction[_Parser]") -> None:
    inspect = commands.add_parser(
        "inspect",
        help="describe an image or a file, and report which tools can pull it",
        description="Describes the layout of an image and its module, and reports whether wasmer would accept the module and, "
        "if not, the reason. FILE is a module, or a gzip, zstd or tar archive of one, as a URL would serve it.",
        epilog="Exit status: 0 wasmer would accept it (and every --require can pull it), 1 otherwise, also if it cannot be "
        "fetched or, with --start, does not start, 2 usage error.",
    )
    inspect.add_argument(
        "reference",
        metavar="REF|FILE",
        help="HOST[:PORT]/NAME[:TAG][@DIGEST], or a file (./NAME if ambiguous; -: standard input)",
    )
    inspect.add_argument(
        "--compat",
        action="store_true",
        help="report which other tools can pull it, and why not: Istio, Envoy Gateway, wasme, kwctl, wkg",
    )
    inspect.add_argument(
        "--require",
        action="append",
        default=[],
        choices=("istio", "envoy-gateway", "wasme", "kwctl", "wkg"),
        help="fail unless this tool can pull it; may be repeated, implies --compat",
    )
    _add_json(inspect)
    add_start(inspect)
    _add_checks(inspect)
    _add_registry(inspect)


def _add_common(parser: argparse.ArgumentParser, *, force: str) -> None:
    parser.add_argument("--force", action="store_true", help=force)
    _add_checks(parser)
    _add_registry(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")


def _add_checks(
    parser: argparse.ArgumentParser, *, quiet: str = "no progress, no warnings"
) -> None:
    ALLOW_IMPORT.declare_read(parser)
    ENVOY_VERSION.declare_read(parser)
    parser.add_argument(
        "-q", "--quiet", action="store_true", help=f"print only the result and errors: {quiet}"
    )


def _add_registry(parser: argparse.ArgumentParser) -> None:
    registry = parser.add_argument_group("registry")
    registry.add_argument(
        "--username", metavar="USER", help="log in as USER; requires --password-stdin"
    )
    registry.add_argument(
        "--password-stdin",
        action="store_true",
        help="read the password or token from standard input",
    )
    tls = registry.add_mutually_exclusive_group()
    tls.add_argument("--plain-http", action="store_true", help="the registry has no TLS")
    tls.add_argument(
        "--insecure", action="store_true", help="do not verify the registry's certificate"
    )
    tls.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="PEM file of additional certificate authorities to trust",
    )


def _run(arguments: argparse.Namespace) -> int:
    from autowasm.errors import AutoWasmError, UsageError  # noqa: PLC0415 - heavy, as below

    try:
        return _command(arguments)
    except AutoWasmError as error:
        return _failed(str(error), error, status=2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}", error, status=1)
    except Exception as error:  # report a bug in one line, without a traceback
        hint = "this is a bug; WASMC_DEBUG=1 prints the traceback"
        return _failed(f"{type(error).__name__}: {error} ({hint})", error, status=1)


def _command(arguments: argparse.Namespace) -> int:
    if arguments.command == "explain":
        from autowasm.cli import explain  # noqa: PLC0415 - reads a cluster: the others need none of that

        return explain.run(arguments)
    if arguments.command == "plan":
        from autowasm.cli import plan  # noqa: PLC0415

        return plan.run(arguments)
    if arguments.command == "rollout":
        from autowasm.cli import rollout  # noqa: PLC0415

        return rollout.run(arguments)
    if arguments.command == "run":
        from autowasm.cli import run  # noqa: PLC0415 - the sandbox, as for test

        return run.run(arguments)
    if arguments.command == "test":
        from autowasm.cli import suites  # noqa: PLC0415

        return suites.run(arguments)
    from autowasm.cli import inspect, pushpull  # noqa: PLC0415

    if arguments.command == "inspect":
        return inspect.run(arguments)
    pushpull.run(arguments)
    return 0


def _failed(sentence: str, error: BaseException, *, status: int) -> int:
    if os.environ.get("WASMC_DEBUG") == "1":
        import traceback  # noqa: PLC0415

        traceback.print_exception(error)
    print(f"wasmc: error: {sentence}", file=sys.stderr)
    return status


def _interrupted(status: int = _BY_SIGINT) -> NoReturn:
    """Exit at once. The interpreter would first wait for its threads, and a DNS lookup may take half a minute."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
