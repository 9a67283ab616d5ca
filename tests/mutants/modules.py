"""The mutated modules, and the tests that must kill their mutants (modules.toml)."""

import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("modules.toml")
ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = "src/autowasm"


def read(text: str, *, root: Path = ROOT) -> dict[str, list[str]]:
    """Path of a module → paths of its tests, in the order in which they run.

    Raises:
        ValueError: A path does not exist, or a module has no tests.
    """
    found: dict[str, list[str]] = {}
    for name, tests in tomllib.loads(text)["modules"].items():
        module = f"{SOURCES}/{name}.py"
        missing = [path for path in (module, *tests) if not (root / path).exists()]
        if missing:
            raise ValueError(f"modules.toml, {name}: no such file: {', '.join(missing)}")
        if not tests:
            raise ValueError(f"modules.toml, {name}: name the tests that kill its mutants")
        found[module] = list(tests)
    return found


def selected(names: Iterable[str], *, known: Iterable[str]) -> list[str]:
    """The known modules that these names mean: `all`, a path, a path without `src/autowasm/` and `.py`, or its last part.

    A folder means every known module below it.

    Raises:
        ValueError: A name means none.
    """
    modules: list[str] = []
    for name in names:
        wanted = name.removeprefix(f"{SOURCES}/").removesuffix(".py").strip("/")
        matching = [
            module
            for module in known
            if name == "all"
            or Path(module).stem == wanted
            or f"{module.removeprefix(f'{SOURCES}/').removesuffix('.py')}/".startswith(f"{wanted}/")
        ]
        if not matching:
            raise ValueError(f"{name}: not in tests/mutants/modules.toml")
        modules += [module for module in matching if module not in modules]
    return modules


def default_base(*, root: Path = ROOT) -> str:
    """The commit where this branch left main, or the one before HEAD if it is on main."""
    head = _git("rev-parse", "HEAD", root=root).stdout.strip()
    for main in ("origin/main", "main"):
        found = _git("merge-base", main, "HEAD", root=root)
        if found.returncode == 0 and found.stdout.strip() != head:
            return found.stdout.strip()
    return "HEAD~1"


def _git(*arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)


def changed(base: str, *, known: Iterable[str], root: Path = ROOT) -> list[str]:
    """The known modules that differ from where this branch left `base`, committed or not.

    Raises:
        ValueError: git does not know `base`.
    """
    done = _git("diff", "--name-only", "--merge-base", base, "--", SOURCES, root=root)
    if done.returncode:
        raise ValueError(
            f"cannot compare with {base}: {done.stderr.strip()}; name modules, or --base"
        )
    files = set(done.stdout.splitlines())
    return [module for module in known if module in files]
