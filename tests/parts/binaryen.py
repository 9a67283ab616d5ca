"""Binaryen's `wasm-opt`, from npm, which many authors run over a module before they push it."""

import hashlib
import tempfile
from pathlib import Path

from tests.parts import cache, golang, npm, pypi

ASSETS = golang.ASSETS / "binaryen"


def optimize(module: bytes, *flags: str) -> bytes:
    """The module after `wasm-opt FLAGS`. Raises PartError with its message. Blocks for seconds per MB."""
    key = hashlib.sha256(repr(flags).encode() + (ASSETS / "package-lock.json").read_bytes())
    key.update(module)

    def fill(target: Path) -> None:
        program = npm.install(ASSETS) / "binaryen/bin/wasm-opt"
        with tempfile.NamedTemporaryFile(suffix=".wasm") as source:
            source.write(module)
            source.flush()
            command: list[str | Path] = [pypi.NODE.install(), program, source.name, *flags]
            cache.run([*command, "-o", target / "module.wasm"], what="running wasm-opt")

    entry = cache.install_once(f"wasm-opt/{key.hexdigest()}", fill=fill)
    return (entry / "module.wasm").read_bytes()
