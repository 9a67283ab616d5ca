"""The compilers of the filters in `tests/assets/filters/`: one folder there, and one class here, for each toolchain.

Not a build system: a filter is one folder of sources, beside the shared files of its toolchain. The
invariant is that of `cache`: a module in the cache was built from exactly the sources and flags that its name is the hash of.
"""

import hashlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.parts import cache, golang, npm, pypi

ASSETS = golang.ASSETS / "filters"
MODULE = "filter.wasm"


@dataclass(frozen=True, slots=True)
class Toolchain(ABC):
    """A way from source to a module. `shared` names the files that all its filters use, relative to its folder."""

    name: str
    shared: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The folder with a folder for each filter."""
        return ASSETS / self.name

    @abstractmethod
    def compile(self, filter_: str, output: Path) -> None:
        """Write the module of the filter to `output`; install the compiler first if it is absent. Raises PartError."""

    def seconds(self) -> float:
        """Usual seconds for a filter, once the compiler is installed."""
        return 5

    @abstractmethod
    def version(self) -> str:
        """The compiler as far as it is pinned: part of the hash."""

    def filters(self) -> tuple[str, ...]:
        """The names of the filters that have a source here, sorted."""
        folders = (path for path in self.folder.iterdir() if path.is_dir())
        return tuple(sorted(path.name for path in folders if path.name not in self.shared))

    def build(self, filter_: str) -> Path:
        """The module of the filter `filter_`, compiled first if the cache lacks it. Raises PartError."""
        entry = f"filters/{self.name}-{filter_}-{self._key(filter_)}"
        part = cache.Part(
            f"filters-{self.name}", f"the filter {filter_} ({self.name})", self.seconds()
        )
        folder = cache.install_once(
            entry, fill=lambda target: self.compile(filter_, target / MODULE), part=part
        )
        return folder / MODULE

    def build_all(self) -> list[Path]:
        """The modules of all filters. Raises PartError."""
        return [self.build(filter_) for filter_ in self.filters()]

    def _key(self, filter_: str) -> str:
        digest = hashlib.sha256(repr((self.version(), self.flags)).encode())
        for source in self._sources(filter_):
            digest.update(f"\0{source.relative_to(self.folder)}\0".encode())
            digest.update(source.read_bytes())
        return digest.hexdigest()[:16]

    def _sources(self, filter_: str) -> Iterator[Path]:
        for name in (filter_, *self.shared):
            path = self.folder / name
            yield from sorted(path.rglob("*.*")) if path.is_dir() else (path,)


class Go(Toolchain):
    """Plain Go from 1.24 on, which can export functions (`//go:wasmexport`)."""

    def version(self) -> str:
        """The minimum version; the compiler is the one on PATH if that is new enough."""
        return ".".join(map(str, golang.required_go(self.folder)))

    def compile(self, filter_: str, output: Path) -> None:
        """See Toolchain."""
        cache.run(
            [
                *(golang.go_command(golang.required_go(self.folder)), "build"),
                *self.flags,
                *("-o", output, f"./{filter_}"),
            ],
            what=f"building the filter {filter_} with Go",
            cwd=self.folder,
            env=golang.go_environment() | {"GOOS": "wasip1", "GOARCH": "wasm"},
        )


GO = Go(
    "go",
    shared=("go.mod", "proxywasm"),
    # Without c-shared the module is a program: Envoy calls _start, which may not call the host.
    flags=(
        "-buildmode=c-shared",
        "-mod=readonly",
        "-trimpath",
        "-buildvcs=false",
        "-ldflags=-s -w",
    ),
)


class C(Toolchain):
    """C with Zig's clang and wasi-libc, which Zig compiles from its source once (half a minute)."""

    def version(self) -> str:
        """The release of Zig."""
        return pypi.ZIG.version

    def seconds(self) -> float:
        """The first filter includes wasi-libc."""
        return 2 if self._zig_cache().is_dir() else 40

    def _zig_cache(self) -> Path:
        """Zig's own cache, with its build of wasi-libc. Zig locks it itself."""
        return cache.cache_dir() / "zig"

    def compile(self, filter_: str, output: Path) -> None:
        """See Toolchain."""
        zig_cache = self._zig_cache()
        cache.run(
            [
                *(pypi.ZIG.install(), "cc"),
                *self.flags,
                *("-o", output, self.folder / filter_ / "filter.c"),
            ],
            what=f"building the filter {filter_} with Zig's C compiler",
            env=os.environ
            | {"ZIG_GLOBAL_CACHE_DIR": str(zig_cache), "ZIG_LOCAL_CACHE_DIR": str(zig_cache)},
        )


C_WITH_ZIG = C(
    "c",
    shared=("proxywasm",),
    flags=(
        # A reactor has _initialize in place of main.
        *("-target", "wasm32-wasi", "-mexec-model=reactor", "-O2", "-s"),
        *("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unused-function"),
    ),
)


class AssemblyScript(Toolchain):
    """AssemblyScript with the SDK @solo-io/proxy-runtime, from npm, run by a Node from PyPI."""

    def version(self) -> str:
        """The release of Node; package-lock.json, a shared source, has the rest."""
        return pypi.NODE.version

    def compile(self, filter_: str, output: Path) -> None:
        """See Toolchain."""
        packages = npm.install(self.folder)
        with tempfile.TemporaryDirectory() as made:
            # The compiler searches for packages beside the sources, but the checkout must not contain any.
            work = Path(made)
            for name in (filter_, *self.shared):
                _copy(self.folder / name, work / name)
            (work / "node_modules").symlink_to(packages)
            command: list[str | Path] = [pypi.NODE.install(), packages / "assemblyscript/bin/asc"]
            command += [f"{filter_}/filter.ts", "--binaryFile", output, *self.flags]
            cache.run(command, what=f"building the filter {filter_} with AssemblyScript", cwd=work)


ASSEMBLYSCRIPT = AssemblyScript(
    "assemblyscript",
    shared=("common", "package.json", "package-lock.json"),
    # The SDK's abort, which logs; the default one is an import that Envoy lacks.
    flags=("--use", "abort=abort_proc_exit", "--optimize"),
)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
