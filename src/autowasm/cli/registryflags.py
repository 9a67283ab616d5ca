"""The commands of `wasmc` about registries and modules, and their flags.

`registries.py` reads the flags of a registry. Invariant: this module imports nothing heavier than argparse, because `wasmc --help`
imports it.
"""

import argparse
from pathlib import Path
from typing import Any, Final

from autowasm.cli.options import ALLOW_IMPORT, ENVOY_VERSION, add_json
from autowasm.cli.trialflags import add_start

_NAME: Final = "HOST[:PORT]/NAME"
_ANY: Final = f"{_NAME}[:TAG] or {_NAME}@DIGEST"


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
        description="Prints the tags of a repository, one on each line, in the order of the registry.",
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
        "signatures stay valid. What the destination has already is not transferred.",
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
        description="Deletes a tag, or with NAME@DIGEST a manifest and all of its tags. AutoWasms that run the module keep it. Asks on a terminal "
        "unless --yes is given.",
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
        description="Tries the login, and keeps it where docker does: in the credential helper or store that $DOCKER_CONFIG/config.json (else "
        "~/.docker/config.json) names, else in that file, base64 encoded. docker, crane, oras and wasmc then use it.",
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
        description="Removes the login from the places where wasmc login keeps it.",
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
    """Add the flags of `registries.py`. `login`: the registry that gets the login, if there are two."""
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
