"""`wasmer`: the controller and blob server.

Reads flags, configures the log, runs the composition root, and turns its errors into an exit status: 0 stopped on request,
1 failure, 2 usage.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from autowasm.cli import wasmerflags
from autowasm.cli.options import KUBECONFIG
from autowasm.cli.stdio import is_coloured
from autowasm.cli.version import ShowVersion
from autowasm.errors import AutoWasmError, UsageError

_CHECK_UNINSTALL: Final = "check-uninstall"
_CHECK_DOWNLOAD: Final = "check-download"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.mode == _CHECK_UNINSTALL:
            from autowasm.cli import charthooks  # noqa: PLC0415  # heavy, as below

            return charthooks.check_uninstall(arguments.kubeconfig)
        if arguments.mode == _CHECK_DOWNLOAD:
            from autowasm.cli import charthooks  # noqa: PLC0415

            return charthooks.check_download(arguments.kubeconfig, arguments.url)
        settings = wasmerflags.settings_from(arguments)
        from autowasm.performance import eventloop  # noqa: PLC0415  # heavy, as below
        from autowasm.telemetry import logs  # noqa: PLC0415

        logs.configure(
            level=settings.log_level,
            form=_log_form(settings.log_format, mode=arguments.mode),
            colour=is_coloured(sys.stderr),
        )
        from autowasm.runtime import process  # noqa: PLC0415  # heavy: keeps --help and usage errors quick

        importlib.import_module(
            "anyio._backends._asyncio"
        )  # watchfiles loads it on the loop, 80 ms
        eventloop.tune_gc()  # before the loop: the first full collection takes 50 to 100 ms
        with eventloop.watched_runner() as runner:
            runner.run(process.run(settings))
    except UsageError as error:
        parser.exit(2, f"wasmer: error: {error}\n")
    except AutoWasmError as error:
        print(f"wasmer: error: {error}", file=sys.stderr)
        return 1
    return 0


def _log_form(given: str, *, mode: str) -> str:
    """Lines for a user at a terminal, JSON for a log collector."""
    if given != "auto":
        return given
    return "console" if mode == "standalone" and sys.stderr.isatty() else "json"


def build_parser() -> argparse.ArgumentParser:
    """The parser with all modes, for `main` and for docs/cli.md."""
    parser = argparse.ArgumentParser(
        prog="wasmer",
        allow_abbrev=False,
        description="Installs WebAssembly filters in running Envoys: fetches, verifies and serves the "
        "modules that AutoWasm objects name, and writes the configuration with which Envoy loads them.",
        epilog="Each flag can also be set in the environment, for example --log-level as WASMER_LOG_LEVEL.",
    )
    parser.add_argument("--version", action=ShowVersion)
    modes = parser.add_subparsers(dest="mode", required=True, metavar="MODE")
    standalone = modes.add_parser(
        "standalone",
        allow_abbrev=False,
        help="run without a cluster, on a directory of YAML files; for a laptop or the CI of a filter",
        description="Reads AutoWasms from a directory of YAML files instead of an API server, and writes "
        "a listener file for an Envoy without Istio.",
    )
    wasmerflags.declare(standalone, "standalone")
    controller = modes.add_parser(
        "controller",
        allow_abbrev=False,
        help="run in a Kubernetes cluster with Istio",
        description="Watches the AutoWasm objects of an API server and writes their EnvoyFilters.",
    )
    wasmerflags.declare(controller, "controller")
    check = modes.add_parser(
        _CHECK_UNINSTALL,
        allow_abbrev=False,
        help="check whether AutoWasms still need wasmer (the chart runs this before it is uninstalled)",
        description="Exits with status 0 if the cluster has no AutoWasms; otherwise prints their names and exits with 1.",
    )
    KUBECONFIG.declare_read(check)
    download = modes.add_parser(
        _CHECK_DOWNLOAD,
        allow_abbrev=False,
        help="check whether a published module can be downloaded (the chart's test runs this)",
        description="Downloads the module of one AutoWasm that is Ready, and verifies its digest. Exits with status 0 if the download "
        "succeeds, or if wasmer answers and no AutoWasm is Ready; otherwise prints the failure and exits with 1.",
    )
    KUBECONFIG.declare_read(download)
    download.add_argument(
        "--url",
        required=True,
        metavar="URL",
        help="address of wasmer's Service, such as http://wasmer.istio-system.svc.cluster.local:8081",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
