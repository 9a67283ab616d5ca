"""`make mutants`: changes the modules of modules.toml, one change at a time, and expects a test to fail.

    python -m tests.mutants                         modules that differ from where this branch left main, or from HEAD~1
    python -m tests.mutants all                     every module of modules.toml
    python -m tests.mutants kube/workqueue net      these
    python -m tests.mutants --in WorkQueue.done kube/workqueue    mutants of one class or function

A mutant that no test kills is a survivor. It is printed with its change and fails the run, unless accepted.toml lists it with
a reason. CONTRIBUTING.md explains what to do about one.
"""

import argparse
import os
import sys
import time

from tests.mutants import accepted, modules
from tests.mutants.modules import ROOT
from tests.mutants.mutation import Mutant, mutants_of_file
from tests.mutants.running import Laboratory, Limits


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument(
        "--base", help="what to compare with (where this branch left main; on main, HEAD~1)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    parser.add_argument(
        "--in", dest="inside", metavar="NAME", help="only mutants in this class or function"
    )
    parser.add_argument("--toml", action="store_true", help="print entries for accepted.toml")
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help="`all`, or paths below src/autowasm"
    )
    arguments = parser.parse_args()
    try:
        base = arguments.base or modules.default_base()
        known = modules.read(modules.FILE.read_text())
        entries = accepted.read(accepted.FILE.read_text())
        strangers = {entry.module for entry in entries} - set(known)
        if strangers:
            parser.error(f"accepted.toml: not in modules.toml: {', '.join(sorted(strangers))}")
        chosen = (
            modules.selected(arguments.modules, known=known)
            if arguments.modules
            else modules.changed(base, known=known)
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not chosen:
        print(f"No module of modules.toml differs from {base}.")
        return 0
    laboratory = Laboratory(jobs=arguments.jobs)
    bad = 0
    for module in chosen:
        bad += _examine(module, known[module], entries, laboratory, arguments)
    return 1 if bad else 0


def _examine(
    module: str,
    tests: list[str],
    entries: list[accepted.Accepted],
    laboratory: Laboratory,
    arguments: argparse.Namespace,
) -> int:
    """The number of problems: survivors that are not accepted, stale entries, tests that fail without a mutant."""
    started = time.monotonic()
    plain = laboratory.unchanged(module, tests)
    if not plain.survived:
        print(f"{module}: its tests fail without a mutant:\n{plain.output}")
        return 1
    every = [
        mutant
        for mutant in mutants_of_file(ROOT / module, root=ROOT)
        if _inside(mutant, arguments.inside)
    ]
    survivors: list[Mutant] = []
    allowed = {entry.key for entry in entries}
    new = 0
    for outcome in laboratory.outcomes(every, tests, limits=Limits.after(plain)):
        mutant = outcome.mutant
        if mutant is None or not outcome.survived:
            continue
        survivors.append(mutant)
        if accepted.key_of(mutant) in allowed:
            continue
        new += 1
        print(
            f"\n{module}:{mutant.line}: survivor in {mutant.where} ({mutant.operator})\n{mutant.diff}",
            flush=True,
        )
        if arguments.toml:
            print(f"\n{accepted.as_toml(mutant)}", flush=True)
    old = [] if arguments.inside else accepted.stale(entries, survivors=survivors, modules={module})
    for entry in old:
        print(
            f"\n{module}: stale entry of accepted.toml in {entry.where}: no such survivor\n- {entry.before}\n+ {entry.after}"
        )
    print(
        f"{module}: {len(every)} mutants, {len(every) - len(survivors)} killed, {len(survivors) - new} accepted, "
        f"{new} survived, {len(old)} stale entries, {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return new + len(old)


def _inside(mutant: Mutant, name: str | None) -> bool:
    return name is None or f"{mutant.where}.".startswith(f"{name}.")


if __name__ == "__main__":
    sys.exit(main())
