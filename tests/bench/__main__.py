"""`make bench [ONLY=serve,herd] [SIZE=full] [REPEATS=3]`: run rows, print tables, keep JSON and pictures in build/bench/.

A row that fails is shown with its error, and the others still run; the exit status is then 1.
"""

import argparse
import asyncio
import compileall
import importlib
import logging
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Final

import autowasm
from tests.bench import machine, pictures, table
from tests.bench.plan import Plan

ROWS: Final = (
    "serve", "herd", "slow", "list", "watch", "match", "fetch", "reconcile", "memory", "startup",
    "preflight", "growth", "wasmplugin", "datapath", "cores",
)  # fmt: skip
"""Each is a module with `async def run(plan) -> Result`, imported only when it runs, as the rivals' libraries are large."""

_SOURCE: Final = Path(autowasm.__file__).parent


def main() -> int:
    """Run the rows of the environment and the arguments."""
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = [name for name in arguments.only.split(",") if name] or list(ROWS)
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        print(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    # As in an installation; with PYTHONDONTWRITEBYTECODE each start would compile every module.
    compileall.compile_dir(_SOURCE, quiet=1)
    failed = []
    for name in names:
        try:
            _run(name, arguments)
        except Exception:  # supervised edge: an error must not lose an hour of other rows
            traceback.print_exc()
            failed.append(name)
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def _run(name: str, arguments: argparse.Namespace) -> None:
    print(f"=== {name} ===", flush=True)
    row = importlib.import_module(f"tests.bench.{name}")
    begun, before = time.monotonic(), machine.calibrate()
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-", dir=arguments.scratch) as directory:
        plan = Plan(Path(directory), arguments.repeats, small=arguments.size == "small")
        result = asyncio.run(row.run(plan))
    noise = machine.as_document([before, machine.calibrate()])
    document = {
        "row": name,
        "size": arguments.size,
        "repeats": arguments.repeats,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "machine": machine.describe(),
        "noise": noise,
        **table.document(result),
    }
    print(table.show(result.figures))
    for note in result.notes:
        print(f"* {note}")
    if noise["verdict"]:
        print(f"* TOO NOISY TO TELL: {noise['verdict']}")
    if arguments.size == "small":
        print("* SIZE=small tries the benchmark itself; the figures mean nothing")
    print(flush=True)
    table.keep(document, arguments.out / f"{name}.json")
    for chart in document["charts"]:
        pictures.draw(chart, arguments.out)


def _arguments() -> argparse.Namespace:
    given = os.environ.get
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--only", default=given("ONLY", ""), help=", ".join(ROWS))
    parser.add_argument("--size", choices=("full", "small"), default=given("SIZE") or "full")
    parser.add_argument("--repeats", type=int, default=int(given("REPEATS") or "3"))
    parser.add_argument("--out", type=Path, default=Path(given("OUT") or "build/bench"))
    parser.add_argument("--scratch", type=Path, help="where blobs and stores lie meanwhile")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
