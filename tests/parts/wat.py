"""Compiles WebAssembly text with the real wat2wasm; has the filter that most tests need.

Not a checker: a text that compiles need not be a filter. Blocks for some milliseconds, and the first time also to
install the compiler if it is absent.
"""

import hashlib
from pathlib import Path

from tests.parts import cache, golang, provision, pypi

_SECTION_ID_CUSTOM = b"\x00"


def compile_text(text: str) -> bytes:
    """The module that `text` describes. Raises PartError with wat2wasm's own message when it does not compile."""
    version = pypi.WAT2WASM.version
    key = hashlib.sha256(f"{version}\0{text}".encode()).hexdigest()

    def fill(target: Path) -> None:
        source = target / "module.wat"
        source.write_text(text)
        command: list[str | Path] = [provision.wat2wasm(), source, "-o", target / "module.wasm"]
        cache.run(command, what="compiling WebAssembly text")

    return (cache.install_once(f"wat/{key}", fill=fill) / "module.wasm").read_bytes()


def assemble(text: str) -> bytes:
    """Like `compile_text`, with wasm-tools: it supports typed references and garbage-collected types, but no legacy exceptions."""
    version = pypi.WASM_TOOLS.version
    key = hashlib.sha256(f"wasm-tools {version}\0{text}".encode()).hexdigest()

    def fill(target: Path) -> None:
        source = target / "module.wat"
        source.write_text(text)
        command: list[str | Path] = [pypi.WASM_TOOLS.install(), "parse", source]
        cache.run([*command, "-o", target / "module.wasm"], what="assembling WebAssembly text")

    return (cache.install_once(f"wat/{key}", fill=fill) / "module.wasm").read_bytes()


def compile_file(source: Path) -> bytes:
    """The module that the text in the file `source` describes."""
    return compile_text(source.read_text())


def header_filter(value: str, *, name: str = "hello") -> bytes:
    """A filter that adds the header `name: value` to every response; ASCII, at most 1000 characters each."""
    text = (golang.ASSETS / "add_header.wat").read_text()
    given = {"NAME": name, "VALUE": value, "NAME_LENGTH": len(name), "VALUE_LENGTH": len(value)}
    for key, replacement in given.items():
        text = text.replace(f"{{{key}}}", str(replacement))
    return compile_text(text)


def padded(module: bytes, *, size: int) -> bytes:
    """The same module, made exactly `size` bytes long by a custom section of zeros, which has no effect.

    `size` must exceed the module's size by at least 16 bytes.
    """
    # Section: id, length of the rest in five bytes, an empty name (its length, 0), the padding.
    content = b"\0" * (size - len(module) - 6)
    return module + _SECTION_ID_CUSTOM + _leb128(len(content)) + content


def _leb128(number: int) -> bytes:
    """`number` as unsigned LEB128 of five bytes, leading zeros included (the specification allows them)."""
    return bytes(
        (number >> shift & 0x7F) | (0x80 if shift < 28 else 0) for shift in range(0, 35, 7)
    )
