"""Runs the tests of a module against its mutants, each in a forked process.

The parent imports pytest, its plugins and all of `autowasm` once. A child drops the mutated module and every module that
depends on it, so that they are imported again, with the mutant instead of the file. No file changes on disk, so a run can
be interrupted at any time, and the sources can be edited meanwhile.
"""

import ast
import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import math
import multiprocessing
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import hypothesis
import pytest

from tests.mutants.modules import ROOT
from tests.mutants.mutation import Mutant

PROFILE: Final = "mutants"
# The same examples in each run, so no mutant survives by chance; a failure need not be shrunk.
hypothesis.settings.register_profile(
    PROFILE,
    deadline=None,
    database=None,
    derandomize=True,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
)
_OPTIONS: Final = (
    "-x",
    "-q",
    "--tb=short",
    "--no-header",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:randomly",
    "-n0",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
    f"--hypothesis-profile={PROFILE}",
)
_PATIENCE: Final = 5
"""A mutant may take this many times the CPU time of the unchanged module before it counts as hanging."""
_GRACE: Final = 2
"""Seconds of CPU time on top of that."""
_WALL_PATIENCE: Final = 10
"""The same for wall time: ends a mutant that waits. Larger, because other processes may slow a run down."""
_WALL_GRACE: Final = 15
"""Seconds of wall time on top of that."""
_FIRST: Final = 600
"""Seconds that the unchanged module may take, of either kind."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of the tests for a mutant."""

    mutant: Mutant | None
    """None for the unchanged module."""
    survived: bool
    seconds: float
    """Wall time."""
    cpu: float
    """CPU time in seconds, of the process and of those it started and waited for. 0 if it was killed."""
    output: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits after which a mutant counts as hanging, which counts as killed."""

    cpu: float
    """Seconds."""
    wall: float
    """Seconds."""

    @classmethod
    def after(cls, unchanged: Outcome) -> "Limits":
        """The limits that follow from the times of the unchanged module."""
        return cls(
            cpu=unchanged.cpu * _PATIENCE + _GRACE,
            wall=unchanged.seconds * _WALL_PATIENCE + _WALL_GRACE,
        )


@dataclass(frozen=True, slots=True)
class _Running:
    process: BaseProcess
    mutant: Mutant
    started: float
    output: Path


def _own_modules() -> dict[str, Path]:
    """Every module of `autowasm` → its file."""
    package = importlib.import_module("autowasm")
    found = {"autowasm": Path(package.__file__ or "")}
    for info in pkgutil.walk_packages(package.__path__, "autowasm."):
        spec = importlib.util.find_spec(info.name)
        if spec is not None and spec.origin is not None:
            found[info.name] = Path(spec.origin)
    return found


def imports(source: str) -> set[str]:
    """Every module that a source may import, at its top or in a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def importers(module: str, imported_by: dict[str, set[str]]) -> set[str]:
    """The module and all that import it, directly or through others. `imported_by` is module → its imports."""
    found = {module}
    while True:
        more = {
            name for name, imported in imported_by.items() if name not in found and imported & found
        }
        if not more:
            return found
        found |= more


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a mutant's source."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self._name, self._path, self._source = name, path, source

    def find_spec(
        self, fullname: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: object) -> None:
        exec(compile(self._source, self._path, "exec"), module.__dict__)


class Laboratory:
    """Holds the parent's imports and starts children."""

    def __init__(self, *, jobs: int) -> None:
        self._jobs = jobs
        self._context = multiprocessing.get_context("fork")
        self._files = _own_modules()
        self._imports = {name: imports(path.read_text()) for name, path in self._files.items()}
        for name in self._files:
            if not name.endswith("__main__"):
                importlib.import_module(name)
        for plugin in importlib.metadata.entry_points(group="pytest11"):
            plugin.load()
        gc.collect()
        gc.freeze()

    def unchanged(self, module: str, tests: Sequence[str]) -> Outcome:
        """The tests of a module without a mutant. They must pass, otherwise the results of mutants mean nothing."""
        source = (ROOT / module).read_text()
        plain = Mutant(module, "", "", 0, "", "", source)
        (outcome,) = self._run([plain], tests, limits=Limits(cpu=_FIRST, wall=_FIRST))
        return outcome

    def outcomes(
        self, mutants: Sequence[Mutant], tests: Sequence[str], *, limits: Limits
    ) -> Iterator[Outcome]:
        """One outcome for each mutant, as they become available."""
        yield from self._run(mutants, tests, limits=limits)

    def _run(
        self, mutants: Sequence[Mutant], tests: Sequence[str], *, limits: Limits
    ) -> Iterator[Outcome]:
        waiting = list(reversed(mutants))
        running: dict[int, _Running] = {}
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            while waiting or running:
                while waiting and len(running) < self._jobs:
                    mutant = waiting.pop()
                    output = Path(folder, str(len(waiting)))
                    process = self._context.Process(
                        target=self._child, args=(mutant, tests, output, limits)
                    )
                    process.start()
                    running[process.sentinel] = _Running(process, mutant, time.monotonic(), output)
                first = min(each.started for each in running.values())
                wait(list(running), timeout=max(0.0, first + limits.wall - time.monotonic()))
                for sentinel, each in list(running.items()):
                    seconds = time.monotonic() - each.started
                    if each.process.is_alive() and seconds < limits.wall:
                        continue
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(each.process.pid or 0, signal.SIGKILL)
                    each.process.join()
                    del running[sentinel]
                    yield _outcome(each, seconds)

    def _child(self, mutant: Mutant, tests: Sequence[str], output: Path, limits: Limits) -> None:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        seconds = math.ceil(limits.cpu)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        name = next(name for name, path in self._files.items() if path == ROOT / mutant.module)
        for importer in importers(name, self._imports):
            _drop(importer)
        importlib.invalidate_caches()
        sys.meta_path.insert(0, _Finder(name, ROOT / mutant.module, mutant.source))
        os.chdir(ROOT)
        code = pytest.main([*_OPTIONS, f"--timeout={limits.wall:.0f}", *tests])
        sys.stdout.flush()
        used = os.times()
        cpu = used.user + used.system + used.children_user + used.children_system
        _cpu_file(output).write_text(str(cpu))
        os._exit(int(code))


def _drop(name: str) -> None:
    """Force a new import of a module, also by `from package import module`, which searches the package first."""
    sys.modules.pop(name, None)
    package, _, last = name.rpartition(".")
    if package in sys.modules:
        vars(sys.modules[package]).pop(last, None)


def _cpu_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.cpu")


def _outcome(ended: _Running, seconds: float) -> Outcome:
    cpu, output = _cpu_file(ended.output), ended.output
    return Outcome(
        ended.mutant if ended.mutant.operator else None,
        ended.process.exitcode == 0,
        seconds,
        float(cpu.read_text()) if cpu.exists() else 0.0,
        output.read_text(errors="replace") if output.exists() else "",
    )
