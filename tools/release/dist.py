"""`make dist`: the source distribution, the wheel, and `wasmc` as a single file, into one folder.

The wheel is built from the source distribution, and the single file from the wheel: users of all three get the same code.
The single file contains Python and all libraries (PyInstaller); docs/contributing/release.md has the figures behind the choice.
Invariant: the folder holds exactly these three files afterwards.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

_EXCLUDED: Final = ("zstandard._cffi", "zstandard.backend_cffi", "sqlite3", "tkinter", "unittest")
"""Modules that libraries import only if another one is absent."""
_UNEXECUTED: Final = ("api", "models")
"""Packages of `kubernetes_asyncio.client` that `autowasm.performance.libraryimport` does not execute: half of all modules that PyInstaller would
find."""


def single_file_name() -> str:
    """For example `wasmc-linux-x86_64`."""
    machine = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return f"wasmc-{platform.system().lower()}-{machine}"


def build(target: Path) -> None:
    """Build all three files. Raises subprocess.CalledProcessError."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, ROOT)
    (wheel,) = target.glob("*.whl")
    with tempfile.TemporaryDirectory(prefix="autowasm-dist-") as scratch:
        _build_single_file(wheel, target, Path(scratch))


def _build_single_file(wheel: Path, target: Path, scratch: Path) -> None:
    unpacked, library = scratch / "wheel", _wasmtime_library()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    _run(
        *(sys.executable, "-m", "PyInstaller", "--onefile", "--clean", "--noconfirm"),
        *("--strip", "--log-level", "WARN", "--name", single_file_name()),
        *("--distpath", target, "--workpath", scratch / "work", "--specpath", scratch),
        # Neither is imported by a statement that PyInstaller could see.
        *("--copy-metadata", "autowasm", "--hidden-import", "autowasm._build"),
        *("--copy-metadata", "wasmtime"),  # sandbox/engine.py asks for its version
        # wasmtime opens it by its path.
        f"--add-data={library}{os.pathsep}wasmtime/{library.parent.name}",
        *(f"--exclude-module={module}" for module in (*_EXCLUDED, *_foreign_modules())),
        *(f"--exclude-module=kubernetes_asyncio.client.{package}" for package in _UNEXECUTED),
        ROOT / "tools/release/wasmc.py",
        # The wheel, not the editable installation of this environment.
        environment={
            "PYTHONPATH": str(unpacked),
            "PYTHONHASHSEED": "0",
            # --clean removes files from its cache in the home folder that a concurrent build still reads.
            "PYINSTALLER_CONFIG_DIR": str(scratch / "cache"),
        },
    )


def _foreign_modules() -> list[str]:
    """The packages of this environment for tests and tools: a library of ours would import some of them if present."""
    requirements = (ROOT / "requirements.txt").read_text()
    ours = {_normal(name) for name in re.findall(r"^([\w.-]+)==", requirements, re.MULTILINE)}
    return [
        module
        for module, packages in sorted(metadata.packages_distributions().items())
        if module.isidentifier()
        and ours.isdisjoint(map(_normal, packages))
        and module != "autowasm"
    ]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _wasmtime_library() -> Path:
    import wasmtime  # noqa: PLC0415  # heavy, and not needed for --help

    (library,) = Path(wasmtime.__file__).parent.glob("linux-*/_libwasmtime.so")
    return library


def _run(*command: str | Path, environment: Mapping[str, str] | None = None) -> None:
    subprocess.run(  # noqa: S603  # fixed arguments
        command, cwd=ROOT, env={**os.environ, **(environment or {})}, check=True
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.release.dist", description=__doc__)
    parser.add_argument("target", type=Path, help="folder; what is in it is removed")
    target: Path = parser.parse_args(arguments).target.resolve()
    try:
        build(target)
    except subprocess.CalledProcessError as error:
        print(error, file=sys.stderr)
        return 1
    for file in sorted(target.iterdir()):
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
