"""The commands of `wasmc` about modules, in registries and on this machine, and their flags.

`registries.py` reads the flags of a registry. Invariant: this module imports nothing heavier than argparse, because `wasmc --help`
imports it.
"""

import argparse
from pathlib import Path
from typing import Any, Final

from autowasm.cli.options import ALLOW_IMPORT, ENVOY_VERSION, add_json

_NAME: Final = "HOST[:PORT]/NAME"
_ANY: Final = f"{_NAME}[:TAG] or {_NAME}@DIGEST"
_CONFIG: Final = (
    "the filter's configuration: @FILE (@-: standard input), or the name of an existing file, whose bytes are passed on "
    "unchanged; any other value is the configuration itself, text or JSON"
)
_RUN_STATUSES: Final = (
    "Exit status: 0 the module starts and does not fail, whatever its response; 1 it does not start, or it fails (Envoy then answers "
    "503, or with failStrategy FAIL_OPEN lets requests pass without the filter), or it cannot be fetched, or with --engine envoy the results "
    "differ; 2 usage error."
)
_TEST_STATUSES: Final = "Exit status: 0 all cases passed, 1 a case failed or a module cannot be loaded, 2 usage error or an invalid suite, also if -k selects no case."


def add_push(commands: Any) -> None:
    """Add the command `wasmc push`."""
    push = commands.add_parser(
        "push",
        help="push a module",
        description="Checks that Envoy can load the module in FILE, and pushes it as REF.",
    )
    push.add_argument(
        "reference", metavar="REF", help="HOST[:PORT]/NAME[:TAG] (default tag: latest)"
    )
    push.add_argument("module", type=Path, nargs="?", metavar="FILE", help="the module, without -f")
    push.add_argument(
        "-f",
        "--file",
        type=Path,
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
    _add_common(
        push, quiet="print only the digest", force="also push a module that Envoy would not load"
    )


def add_pull(commands: Any) -> None:
    """Add the command `wasmc pull`."""
    pull = commands.add_parser(
        "pull",
        help="pull a module",
        description="Pulls the module of REF, an artifact or container image, checks that Envoy can load it, and writes "
        "it to filter.wasm or FILE. An existing file is replaced only after all checks; if the pull fails, it is not changed.",
    )
    pull.add_argument("reference", metavar="REF", help=_ANY)
    pull.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="file to write; a folder (one that exists, or a name that ends in /) gets filter.wasm; -: standard output, for a pipe. "
        "Folders are created if absent (default: ./filter.wasm)",
    )
    _add_common(
        pull,
        quiet="print only the path of the file",
        force="also write a module that Envoy would not load",
    )


def add_inspect(commands: Any) -> None:
    """Add the command `wasmc inspect`."""
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
    add_json(inspect)
    add_start(inspect)
    add_checks(inspect)
    add_registry(inspect)


def add_tags(commands: Any) -> None:
    """Add the command `wasmc tags`."""
    tags = commands.add_parser(
        "tags",
        help="list the tags of a repository",
        description="Prints the tags of a repository, one per line, in the registry's order.",
    )
    tags.add_argument("reference", metavar="NAME", help=_NAME)
    _add_output(tags, quiet="no warnings")
    add_registry(tags)


def add_digest(commands: Any) -> None:
    """Add the command `wasmc digest`."""
    digest = commands.add_parser(
        "digest",
        help="print the digest of an image",
        description="Prints the digest of the manifest or index that REF names, to pin an image: NAME@DIGEST. Nothing is downloaded.",
    )
    digest.add_argument("reference", metavar="REF", help=_ANY)
    _add_output(digest, quiet="no warnings")
    add_registry(digest)


def add_copy(commands: Any) -> None:
    """Add the command `wasmc copy`."""
    copy = commands.add_parser(
        "copy",
        aliases=["cp"],
        help="copy an image to another repository or registry",
        description="Copies the image SOURCE, of any layout, with every image of an index. The manifests are not changed, so digests and "
        "signatures stay valid. Content that the destination already has is not transferred.",
    )
    copy.add_argument("reference", metavar="SOURCE", help=_ANY)
    copy.add_argument(
        "destination",
        metavar="DESTINATION",
        help=f"{_NAME}[:TAG] (default: the tag of SOURCE, or no tag if it has a digest)",
    )
    _add_output(copy, quiet="print only the digest")
    add_registry(copy, login="the destination")


def add_delete(commands: Any) -> None:
    """Add the command `wasmc delete`."""
    delete = commands.add_parser(
        "delete",
        aliases=["rm"],
        help="delete a tag or an image from a registry",
        description="Deletes a tag, or with NAME@DIGEST a manifest and all of its tags. AutoWasms that run the module keep it. Asks for "
        "confirmation on a terminal unless --yes is given.",
    )
    delete.add_argument("reference", metavar="REF", help=f"{_NAME}:TAG or {_NAME}@DIGEST")
    delete.add_argument("-y", "--yes", "-f", "--force", action="store_true", help="do not ask")
    _add_output(delete, quiet="print nothing")
    add_registry(delete)


def add_login(commands: Any) -> None:
    """Add the command `wasmc login`."""
    login = commands.add_parser(
        "login",
        help="log in to a registry",
        description="Tests the login, and stores it where docker does: in the credential helper or store that $DOCKER_CONFIG/config.json "
        "(else ~/.docker/config.json) names, or else in that file, base64 encoded. docker, crane, oras and wasmc then use it.",
    )
    _add_host(login)
    login.add_argument(
        "-u", "--username", metavar="USER", help="user name; asked for on a terminal"
    )
    login.add_argument(
        "-p",
        "--password",
        metavar="PASSWORD",
        help="password or token; other users of this machine may see it: prefer --password-stdin",
    )
    _add_password_stdin(login)
    _add_output(login, quiet="print nothing")
    _add_tls(login.add_argument_group("registry"))


def add_logout(commands: Any) -> None:
    """Add the command `wasmc logout`."""
    logout = commands.add_parser(
        "logout",
        help="remove a login",
        description="Removes the login from the places where wasmc login stores it.",
    )
    _add_host(logout)
    _add_output(logout, quiet="print nothing")


def _add_output(parser: argparse.ArgumentParser, *, quiet: str) -> None:
    add_json(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help=quiet)


def _add_common(parser: argparse.ArgumentParser, *, quiet: str, force: str) -> None:
    parser.add_argument("--force", action="store_true", help=force)
    add_json(parser)
    add_checks(parser, quiet=f"{quiet}; no progress, no warnings", only_result=False)
    add_registry(parser)


def add_checks(
    parser: argparse.ArgumentParser,
    *,
    quiet: str = "no progress, no warnings",
    only_result: bool = True,
) -> None:
    """Add the flags about the checks of a module, and --quiet."""
    ALLOW_IMPORT.declare_read(parser)
    ENVOY_VERSION.declare_read(parser)
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help=f"print only the result and errors: {quiet}" if only_result else quiet,
    )


def add_registry(parser: argparse.ArgumentParser, *, login: str = "") -> None:
    """Add the flags of `registries.py`. `login`: the registry that gets the login, if there are two registries."""
    registry = parser.add_argument_group("registry")
    of = f" to {login}" if login else ""
    registry.add_argument(
        "--username", metavar="USER", help=f"log in{of} as USER; requires --password-stdin"
    )
    _add_password_stdin(registry)
    _add_tls(registry)


def _add_host(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "host",
        metavar="HOST",
        nargs="?",
        default="docker.io",
        help="HOST[:PORT] (default: docker.io)",
    )


def _add_password_stdin(group: "argparse._ActionsContainer") -> None:
    group.add_argument(
        "--password-stdin",
        action="store_true",
        help="read the password or token from standard input",
    )


def _add_tls(group: "argparse._ActionsContainer") -> None:
    tls = group.add_mutually_exclusive_group()
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


def add_run(commands: Any) -> None:
    """Add the command `wasmc run`."""
    run = commands.add_parser(
        "run",
        help="show what a filter does to a request",
        description="Starts a module with its configuration on this machine, lets a request pass through it as Envoy would, and "
        "shows what the service and the client get: added (+), changed (~) and removed (-) headers, local replies, logs, metrics "
        "and callouts. Nothing else runs: you define the responses of the service and of the clusters that the filter calls.",
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
        help="select this AutoWasm if the file of -f has several",
    )
    _add_plugin(run)
    add_json(run)
    run.add_argument(
        "--log-level",
        choices=("trace", "debug", "info", "warning", "error", "critical"),
        default="info",
        help="minimum level of the filter's log lines that Envoy writes (default: info)",
    )
    request = run.add_argument_group("request")
    request.add_argument(
        "--request",
        default="GET /",
        metavar="'METHOD /path'",
        help="the request; a URL instead of a path also sets :authority and :scheme (default: GET /)",
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
        "as curl -i prints it), or a .yaml or .json file with an answer or a list of answers as in a suite of wasmc test; may be "
        "repeated",
    )
    around.add_argument(
        "--tcp",
        action="store_true",
        help="a TCP connection instead of a request: --body is what the client sends, --response-body what the service sends",
    )
    around.add_argument(
        "--engine",
        default="sandbox",
        metavar="sandbox|envoy[=PATH]",
        help="envoy: also send the request through a real Envoy on this machine (PATH, else envoy on $PATH), and show what "
        "differs; the sandbox then behaves like that release. Cannot be combined with --tcp or --property (default: sandbox)",
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
        help="use this module instead of those of the suites",
    )
    test.add_argument(
        "--engine",
        default="sandbox",
        metavar="sandbox|envoy[=PATH]",
        help="envoy: also run each case in a real Envoy on this machine (PATH, else envoy on $PATH); a case fails if Envoy behaves "
        "differently from the sandbox, which then behaves like that release. Cases with properties or gRPC answers run in the sandbox "
        "only (default: sandbox)",
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
