"""`make fuzz`: coverage-guided fuzzing of all readers of foreign input.

    python -m tests.hostile.fuzz [--seconds N] [TARGET ...]      all targets, one after the other
    python -m tests.hostile.fuzz --replay TARGET FILE            replay a crash file, with the traceback

A target ends at its first finding, and prints the file with the input and the command that replays it; the exit status is 1.
The corpus of a run stays in `.fuzz/` for the next one. atheris has wheels for CPython 3.11 to 3.13 on Linux: elsewhere the
program reports that and succeeds, because hypothesis tests the same readers in tests/property.
"""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Final

NAMES: Final = (
    "wasm",
    "archives",
    "manifests",
    "references",
    "docker-configs",
    "ranges",
    "specs",
    "documents",
    "templates",
    "watch-lines",
    "host-calls",
)
"""The keys of `targets.TARGETS`, which is imported only in the processes that run it: atheris changes modules that it imports."""
ROOT = Path(__file__).parents[3]
WORK = ROOT / ".fuzz"
_SLOWEST = 10
"""Seconds for one input; more is a finding."""
_MEMORY = 2048
"""MiB of the whole process; more is a finding."""
_LONGEST = 65_536


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz")
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"))
    parser.add_argument("--one", metavar="TARGET", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    arguments = parser.parse_args()
    if arguments.replay:
        from tests.hostile.fuzz.targets import TARGETS, check  # noqa: PLC0415

        name, file = arguments.replay
        check(TARGETS[name], Path(file).read_bytes())
        print(f"{name}: nothing wrong with {file}")
        return 0
    if importlib.util.find_spec("atheris") is None:
        print(
            f"fuzzing left out: atheris has no wheel for {sys.implementation.name} {sys.version.split()[0]}"
        )
        return 0
    if arguments.one:
        return _fuzz(arguments.one, arguments.seconds)
    if unknown := set(arguments.targets) - set(NAMES):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    found = [name for name in arguments.targets or NAMES if not _run(name, arguments.seconds)]
    print(f"fuzzing found something in: {', '.join(found)}" if found else "fuzzing found nothing")
    return 1 if found else 0


def _run(name: str, seconds: int) -> bool:
    """Run a target in a process of its own, because libFuzzer ends the process. Returns whether nothing was found."""
    artifacts = WORK / "found"
    artifacts.mkdir(parents=True, exist_ok=True)
    before = set(artifacts.iterdir())
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--one", name, "--seconds", str(seconds)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=seconds * 3 + 180, check=False
    )
    tail = done.stderr.splitlines()
    runs = next((line for line in reversed(tail) if line.startswith("Done ")), "")
    if done.returncode == 0 and runs:
        print(f"{name}: {runs.removeprefix('Done ')}", flush=True)
        return True
    print(f"{name}: FOUND\n" + "\n".join(tail[-40:]))
    for file in sorted(set(artifacts.iterdir()) - before):
        print(f"  shown by {file.relative_to(ROOT)}; to see it again:")
        print(f"  {sys.executable} -m tests.hostile.fuzz --replay {name} {file.relative_to(ROOT)}")
    return False


def _fuzz(name: str, seconds: int) -> int:
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=["autowasm"]):
        from tests.hostile.fuzz.targets import TARGETS, check  # noqa: PLC0415
    corpus = WORK / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    target = TARGETS[name]
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
    atheris.Setup(
        [
            "fuzz",
            f"-max_total_time={seconds}",
            f"-timeout={_SLOWEST}",
            f"-rss_limit_mb={_MEMORY}",
            f"-max_len={_LONGEST}",
            f"-artifact_prefix={WORK / 'found'}/{name}-",
            "-print_final_stats=0",
            str(corpus),
        ],
        lambda data: check(target, data),
    )
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
