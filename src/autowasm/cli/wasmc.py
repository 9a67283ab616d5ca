"""`wasmc`: pushes and pulls modules, inspects images and files, runs and tests filters; explains, plans and rolls out AutoWasms.

Reads flags and runs a command; `failures.py` turns errors into exit statuses. `kubectl-autowasm` is the same program. Invariants:
standard output holds only the result lines; this module imports nothing heavier than argparse, so `--help` is instant.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from autowasm.cli import clusterflags, completion, moduleflags
from autowasm.cli.options import add_json
from autowasm.cli.usage import Parser, UsageExit, closest
from autowasm.cli.version import ShowVersion, describe
from autowasm.reasons import Reason

_DESCRIPTION = """\
Pushes, pulls and inspects WebAssembly modules for Envoy in OCI registries. Runs and tests a filter without an Envoy.
Diagnoses an AutoWasm in a cluster, shows what applying one would change, and controls its rollout.

  wasmc push registry.example/team/filter:v1 -f filter.wasm
  wasmc pull registry.example/team/filter:v1
  wasmc inspect registry.example/team/filter:v1 --compat
  wasmc run filter.wasm --config '{"key": "value"}' -H 'x-user: alice'
  wasmc test suite.yaml
  wasmc plan -f autowasm.yaml
  wasmc explain NAME -n NAMESPACE
  wasmc rollout status NAME -n NAMESPACE -w
  wasmc convert -f wasmplugin.yaml > autowasm.yaml
"""

_EPILOG = """\
The login is read from the files of Docker, podman, buildah, skopeo and CI systems, in this order: $DOCKER_AUTH_CONFIG (in
GitLab CI last), $DOCKER_CONFIG/config.json, $REGISTRY_AUTH_FILE (else ${XDG_RUNTIME_DIR}/containers/auth.json),
$XDG_CONFIG_HOME/containers/auth.json, ~/.docker/config.json (without $DOCKER_CONFIG), ~/.dockercfg. Credential helpers are
supported. --username with --password-stdin overrides all of these.

A registry on this machine (localhost, 127.x.x.x, [::1]) is accessed over plain HTTP unless it has TLS. Other registries are
accessed through $HTTPS_PROXY ($HTTP_PROXY with --plain-http) unless $NO_PROXY names them.

Exit status:
    0  success
    1  failure. inspect: also a refused module; run: a module that does not start or fails; test: a failed case; explain and
       plan: also reported errors; rollout: an aborted rollout
    2  usage error, or an API server that cannot be queried
    3  convert: something was lost
  130  interrupted by Ctrl-C
  143  ended by SIGTERM
With --json an error is also a document on standard output: {"error": {"reason", "message", "hint"}}. The reasons are those
of docs/reference/conditions.md.

Colours are used on a terminal only, not with NO_COLOR or TERM=dumb, and always with CLICOLOR_FORCE. WASMC_DEBUG=1 prints
the traceback of an error.
"""

_PROGRAM: Final = "wasmc"
_PLUGIN: Final = "kubectl autowasm"
_ELSEWHERE: Final = {
    "apply": "`kubectl apply -f FILE`; `wasmc plan -f FILE` shows first what it would change",
    "blob": "`wasmc pull REF`",
    "build": "`wasmc push REF -f FILE` for a module that your toolchain built",
    "catalog": "`wasmc tags NAME` for one repository",
    "config": "`wasmc inspect REF`",
    "create": "`kubectl apply -f FILE`",
    "describe": "`wasmc explain NAME`",
    "diff": "`wasmc plan -f FILE`",
    "edit": "`kubectl edit autowasm NAME`",
    "exec": "`wasmc run REF|FILE`",
    "export": "`wasmc pull REF -o FILE`",
    "get": "`kubectl get autowasm`",
    "images": "`wasmc tags NAME`",
    "lint": "`wasmc inspect FILE` for a module, `wasmc plan --offline -f FILE` for an AutoWasm",
    "list": "`wasmc tags NAME`",
    "logs": "`wasmc explain NAME` for the state of an AutoWasm, `kubectl logs` for the log of a sidecar",
    "ls": "`wasmc tags NAME`",
    "manifest": "`wasmc inspect REF`",
    "ps": "`kubectl get autowasm`",
    "repo": "`wasmc tags NAME`",
    "save": "`wasmc pull REF -o FILE`",
    "show": "`wasmc inspect REF`",
    "tag": "`wasmc copy REF NAME:TAG`",
    "validate": "`wasmc inspect FILE` for a module, `wasmc plan --offline -f FILE` for an AutoWasm",
}
"""Words that users of docker, oras, crane or kubectl type."""
_ALIASES: Final = {"cp": "copy", "rm": "delete"}
_GLOBAL_FLAGS: Final = frozenset({"-n", "--namespace", "--context", "--kubeconfig"})
"""Flags that users write before the command, as with kubectl."""
_BY_SIGINT: Final = 130
"""128 + the signal's number, as in shells."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `wasmc`. Returns the exit status."""
    return _main(sys.argv[1:] if argv is None else argv, program=_PROGRAM)


def kubectl_main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `kubectl-autowasm`, which kubectl runs for `kubectl autowasm`."""
    return _main(sys.argv[1:] if argv is None else argv, program=_PLUGIN)


def _main(argv: Sequence[str], *, program: str) -> int:
    parser = build_parser(program)
    if completion.VARIABLE in os.environ:
        completion.answer(parser)
    words = _reordered(argv)
    try:
        arguments = parser.parse_args(words)
    except UsageExit as error:
        if "--json" in words:
            from autowasm.cli import failures  # noqa: PLC0415 - heavy

            print(failures.document(Reason.USAGE, error.message))
        raise
    arguments.command = _ALIASES.get(arguments.command, arguments.command)
    try:
        return _run(arguments, parser)
    except KeyboardInterrupt as interrupt:
        return _interrupted(*interrupt.args)


def _reordered(argv: Sequence[str]) -> list[str]:
    """The words, with the flags before the command moved behind it."""
    index = 0
    while index < len(argv) and argv[index].partition("=")[0] in _GLOBAL_FLAGS:
        index += 1 if "=" in argv[index] else 2
    before, rest = list(argv[:index]), list(argv[index:])
    return [*rest[:1], *before, *rest[1:]] if rest else before


def build_parser(program: str = _PROGRAM) -> Parser:
    """The parser with all commands, for `main` and for docs/cli.md."""
    parser = Parser(
        prog=program,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.elsewhere = _ELSEWHERE
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    moduleflags.add_push(commands)
    moduleflags.add_pull(commands)
    moduleflags.add_inspect(commands)
    moduleflags.add_run(commands)
    moduleflags.add_test(commands)
    clusterflags.add_explain(commands)
    clusterflags.add_plan(commands)
    _add_convert(commands)
    clusterflags.add_rollout(commands)
    moduleflags.add_tags(commands)
    moduleflags.add_digest(commands)
    moduleflags.add_copy(commands)
    moduleflags.add_delete(commands)
    moduleflags.add_login(commands)
    moduleflags.add_logout(commands)
    _add_own(commands)
    return parser


def _add_convert(commands: Any) -> None:
    """Add the command `wasmc convert`."""
    convert = commands.add_parser(
        "convert",
        help="convert WasmPlugins and similar objects to AutoWasms",
        description="Prints the AutoWasms that do the same as the objects in FILE: WasmPlugin and TrafficExtension of Istio, WasmPlugin of "
        "Higress, EnvoyExtensionPolicy of Envoy Gateway, and EnvoyFilters with remote Wasm. Names each field that an AutoWasm "
        "cannot express on standard error. Nothing is fetched or written.",
        epilog="Exit status: 0 everything was converted, 1 failure, 2 usage error, 3 something was lost; a line that begins "
        "with wasmc: lost names each loss.",
    )
    convert.add_argument(
        "-f",
        "--file",
        type=Path,
        action="append",
        default=[],
        metavar="FILE|DIR",
        help="YAML or JSON, parsed as by kubectl; -: standard input; may be repeated",
    )
    convert.add_argument(
        "path", type=Path, nargs="?", metavar="FILE", help="a file or folder, without -f"
    )
    convert.add_argument(
        "--gateway",
        action="store_true",
        help="treat the Pods that a selector matches as gateways even if their labels do not show it",
    )
    add_json(convert)


def _add_own(commands: Any) -> None:
    """The commands about `wasmc` itself."""
    shell = commands.add_parser(
        "completion",
        help="print the completion script of a shell",
        description="Prints a script that completes commands, flags, files and the names of AutoWasms.\n\n"
        "  bash: source <(wasmc completion bash)           in ~/.bashrc\n"
        "  zsh:  source <(wasmc completion zsh)            in ~/.zshrc, after compinit\n"
        "  fish: wasmc completion fish | source            in ~/.config/fish/config.fish",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shell.add_argument("shell", choices=completion.SHELLS, help="the shell")
    help_ = commands.add_parser("help", help="show the help of a command")
    help_.add_argument("topic", metavar="COMMAND", nargs="?", help="the command")
    commands.add_parser("version", help="show the version, the commit and the build date")


def _run(arguments: argparse.Namespace, parser: Parser) -> int:
    if arguments.command == "help":
        return _help(parser, arguments.topic)
    if arguments.command == "version":
        print(describe(parser.prog))
        return 0
    if arguments.command == "completion":
        print(completion.code(arguments.shell))
        return 0
    try:
        return _runner(arguments.command)(arguments)
    except Exception as error:  # errors of all kinds, including bugs, are one line
        from autowasm.cli import failures  # noqa: PLC0415 - heavy, as below

        as_json = getattr(arguments, "json", False)
        return failures.report(error, program=parser.prog, as_json=as_json)


def _runner(command: str) -> Callable[[argparse.Namespace], int]:
    """The function of a command. Its imports are heavy, and differ between commands."""
    match command:
        case "explain" | "plan" | "rollout":
            return _cluster_runner(command)
        case "convert":
            from autowasm.cli import convert  # noqa: PLC0415

            return convert.run
        case "run":
            from autowasm.cli import run  # noqa: PLC0415 - the sandbox, as for test

            return run.run
        case "test":
            from autowasm.cli import test  # noqa: PLC0415

            return test.run
        case "inspect":
            from autowasm.cli import inspect  # noqa: PLC0415

            return inspect.run
        case "login" | "logout":
            from autowasm.cli import logins  # noqa: PLC0415

            return logins.run
        case "push" | "pull":
            from autowasm.cli import pushpull  # noqa: PLC0415

            return pushpull.run
        case _:
            from autowasm.cli import registrycommands  # noqa: PLC0415

            return registrycommands.run


def _cluster_runner(command: str) -> Callable[[argparse.Namespace], int]:
    """The function of a command that reads a cluster; the others need none of these imports."""
    match command:
        case "explain":
            from autowasm.cli import explain  # noqa: PLC0415

            return explain.run
        case "plan":
            from autowasm.cli import plan  # noqa: PLC0415

            return plan.run
        case _:
            from autowasm.cli import rollout  # noqa: PLC0415

            return rollout.run


def _help(parser: Parser, topic: str | None) -> int:
    if topic is None:
        parser.print_help()
        return 0
    topic = _ALIASES.get(topic, topic)
    parsers = parser.commands()
    if topic not in parsers:
        meant = closest(topic, parsers)
        parser.error(f"no command {topic!r}" + (f"; did you mean {meant}?" if meant else ""))
    parsers[topic].print_help()
    return 0


def _interrupted(status: int = _BY_SIGINT) -> NoReturn:
    """Exit at once. The interpreter would first wait for its threads, and a DNS lookup may take half a minute."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
