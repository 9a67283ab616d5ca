"""`wasmc`: pushes and pulls modules, inspects images and files, explains and plans AutoWasms.

Reads flags and turns errors into exit statuses: 0 done, 1 failure, 2 usage, 130 and 143 interrupted. Invariants: standard
output holds only the result lines; this module imports nothing heavier than argparse, so `--help` is instant.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from autowasm.cli.commonflags import add_module_flags

_STATUSES = (
    "Exit status: 0 all right (warnings and notes included, unless --strict), 1 something is wrong, 2 wrong usage, or "
    "the API server cannot be asked."
)


def add_explain(commands: Any, add_registry: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the command `wasmc explain`."""
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
    _add_cluster_flags(explain)
    add_registry(explain)


def add_plan(commands: Any, add_registry: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the command `wasmc plan`."""
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
    _add_cluster_flags(plan)
    add_registry(plan)


def _add_cluster_flags(parser: argparse.ArgumentParser) -> None:
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


_DESCRIPTION = """\
Pushes WebAssembly modules for Envoy to an OCI registry, pulls them back, and says what is in them; says what is right and
wrong about an AutoWasm in a cluster, and what applying one would do.

  wasmc push registry.example/team/filter:v1 -f filter.wasm
  wasmc pull registry.example/team/filter:v1
  wasmc inspect registry.example/team/filter:v1 --compat
  wasmc plan -f autowasm.yaml
  wasmc explain NAME -n NAMESPACE
"""

_EPILOG = """\
The login is found where Docker, podman, buildah, skopeo and CI systems keep it, in this order: $DOCKER_AUTH_CONFIG (in GitLab
CI last), $DOCKER_CONFIG/config.json, $REGISTRY_AUTH_FILE (else ${XDG_RUNTIME_DIR}/containers/auth.json),
$XDG_CONFIG_HOME/containers/auth.json, ~/.docker/config.json (without $DOCKER_CONFIG), ~/.dockercfg; with credential helpers.
--username with --password-stdin wins over it.

A registry on this machine (localhost, 127.x.x.x, [::1]) is asked in plain HTTP, unless it has TLS. Others are asked through
$HTTPS_PROXY ($HTTP_PROXY with --plain-http), unless $NO_PROXY names them.

Exit status: 0 done, 1 failure (of inspect also: refused; of explain and plan: something is wrong), 2 wrong usage. WASMC_DEBUG=1 shows where an error comes from.
"""

_BY_SIGINT = 130
"""128 + the signal's number, as in shells."""


class _Parser(argparse.ArgumentParser):
    """Reports usage errors in the form of all other errors. Accepts no abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.format_usage()}wasmc: error: {message}\n")


class _Version(argparse.Action):
    """Reads the version only for `--version`: that takes longer than the whole `--help`."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib import metadata  # noqa: PLC0415

        print(f"wasmc {metadata.version('autowasm')}")
        parser.exit()


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
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_push(commands)
    _add_pull(commands)
    _add_inspect(commands)
    add_explain(commands, _add_registry)
    add_plan(commands, _add_registry)
    return parser


def _add_push(commands: "argparse._SubParsersAction[_Parser]") -> None:
    push = commands.add_parser(
        "push",
        help="push a module",
        description="Checks that Envoy can load the module in FILE, and pushes it as REF.",
    )
    push.add_argument("reference", metavar="REF", help="HOST[:PORT]/NAME[:TAG]; no tag: latest")
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
        help="artifact (default): what Istio, Envoy Gateway and wasme read; image: a container image with the module as "
        "plugin.wasm, for Istio and Envoy Gateway; cncf: what wkg reads; kwctl: what Kubewarden and wasm-to-oci read; "
        "wasmer reads them all",
    )
    push.add_argument(
        "--annotation",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an annotation of the manifest; repeatable",
    )
    push.add_argument(
        "--source", metavar="URL", help="where the source code is (org.opencontainers.image.source)"
    )
    push.add_argument(
        "--version",
        metavar="VERSION",
        help="the version of the module (org.opencontainers.image.version)",
    )
    _add_common(push, force="push what Envoy would not load, too")


def _add_pull(commands: "argparse._SubParsersAction[_Parser]") -> None:
    pull = commands.add_parser(
        "pull",
        help="pull a module",
        description="Pulls the module of REF, an artifact or container image, checks that Envoy can load it, and writes "
        "it to filter.wasm. A filter.wasm that is there already is replaced at the end, or stays as it is.",
    )
    pull.add_argument(
        "reference", metavar="REF", help="HOST[:PORT]/NAME[:TAG] or HOST[:PORT]/NAME@DIGEST"
    )
    pull.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="the folder for filter.wasm; made if need be (default: the current one)",
    )
    _add_common(pull, force="write what Envoy would not load, too")


def _add_inspect(commands: "argparse._SubParsersAction[_Parser]") -> None:
    inspect = commands.add_parser(
        "inspect",
        help="say what an image or a file is, and who can pull it",
        description="Says in which layout an image holds its module, what the module is, whether wasmer would accept it and, "
        "if not, why not. A FILE is a module, or a gzip, zstd or tar archive of one, as it would lie behind a URL.",
        epilog="Exit status: 0 wasmer would accept it (and every --require can pull it), 1 not, or it cannot be had; "
        "2 wrong usage.",
    )
    inspect.add_argument(
        "reference",
        metavar="REF|FILE",
        help="HOST[:PORT]/NAME[:TAG], the same with @DIGEST, or a file (./NAME if in doubt; -: standard input)",
    )
    inspect.add_argument(
        "--compat",
        action="store_true",
        help="who else can pull it, and why not: Istio, Envoy Gateway, wasme, kwctl, wkg",
    )
    inspect.add_argument(
        "--require",
        action="append",
        default=[],
        choices=("istio", "envoy-gateway", "wasme", "kwctl", "wkg"),
        help="fail unless this one can pull it, too; repeatable, implies --compat",
    )
    inspect.add_argument("--json", action="store_true", help="everything, as one JSON document")
    _add_checks(inspect)
    _add_registry(inspect)


def _add_common(parser: argparse.ArgumentParser, *, force: str) -> None:
    parser.add_argument("--force", action="store_true", help=force)
    _add_checks(parser)
    _add_registry(parser)


def _add_checks(parser: argparse.ArgumentParser) -> None:
    add_module_flags(parser)
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="only the result and errors: no progress, no warnings",
    )


def _add_registry(parser: argparse.ArgumentParser) -> None:
    registry = parser.add_argument_group("registry")
    registry.add_argument(
        "--username", metavar="USER", help="log in as USER, with --password-stdin"
    )
    registry.add_argument(
        "--password-stdin",
        action="store_true",
        help="read the password or token from standard input",
    )
    tls = registry.add_mutually_exclusive_group()
    tls.add_argument("--plain-http", action="store_true", help="the registry has no TLS")
    tls.add_argument(
        "--insecure", action="store_true", help="do not check the registry's certificate"
    )
    tls.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="PEM file of further certificate authorities to trust",
    )


def _run(arguments: argparse.Namespace) -> int:
    from autowasm.errors import AutoWasmError, UsageError  # noqa: PLC0415 - heavy, as below

    try:
        if arguments.command == "explain":
            from autowasm.cli import explain  # noqa: PLC0415 - reads a cluster: the others need none of that

            return explain.run(arguments)
        if arguments.command == "plan":
            from autowasm.cli import plan  # noqa: PLC0415

            return plan.run(arguments)
        from autowasm.cli import inspect, pushpull  # noqa: PLC0415

        if arguments.command == "inspect":
            return inspect.run(arguments)
        pushpull.run(arguments)
    except AutoWasmError as error:
        return _failed(str(error), error, status=2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}", error, status=1)
    except Exception as error:  # report a bug in one line, without a traceback
        hint = "this is a bug; WASMC_DEBUG=1 shows where"
        return _failed(f"{type(error).__name__}: {error} ({hint})", error, status=1)
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
