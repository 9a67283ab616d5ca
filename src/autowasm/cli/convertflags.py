"""The flags of `wasmc convert`. Invariant: imports nothing heavier than argparse."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_convert(commands: Any, add_json: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the command `wasmc convert`."""
    convert = commands.add_parser(
        "convert",
        help="convert WasmPlugins and similar objects to AutoWasms",
        description="Prints the AutoWasms that do the same as the objects in FILE: WasmPlugin and TrafficExtension of Istio, WasmPlugin of "
        "Higress, EnvoyExtensionPolicy of Envoy Gateway, and EnvoyFilters with remote Wasm. Names each field that an AutoWasm "
        "cannot express on standard error. Nothing is fetched or written.",
        epilog="Exit status: 0 everything was converted, 1 failure, 2 usage error, 3 something was lost, and is named in a line that begins "
        "with wasmc: lost.",
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
        help="the Pods that a selector matches are gateways, although their labels do not tell",
    )
    add_json(convert)
