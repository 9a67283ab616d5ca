"""`make bench [ONLY=reconcile] [SIZE=1000] [REPEATS=3]`: run rows, print a table, keep it in build/bench/."""

import argparse
import asyncio
import os
from pathlib import Path

from tests.bench import reconcile, table

ROWS = {"reconcile": reconcile.run}


def main() -> None:
    """Run what the environment and the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--only", default=os.environ.get("ONLY", ""), help=", ".join(ROWS))
    parser.add_argument("--size", type=int, default=int(os.environ.get("SIZE", "1000")))
    parser.add_argument("--repeats", type=int, default=int(os.environ.get("REPEATS", "3")))
    arguments = parser.parse_args()
    for name in arguments.only.split(",") if arguments.only else ROWS:
        row = ROWS[name]
        figures = asyncio.run(row(size=arguments.size, repeats=arguments.repeats))
        print(f"{name}\n{table.show(figures)}\n", flush=True)
        table.keep(figures, Path("build/bench") / f"{name}.json")


if __name__ == "__main__":
    main()
