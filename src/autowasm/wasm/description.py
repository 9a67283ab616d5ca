"""What a module says of itself, also one that is refused: imports, exports, ABI, as far as they can be read.

Not the verdict (`module.py`). Invariant: whatever the bytes, the outcome is a Description, an empty one at worst.
"""

from dataclasses import dataclass
from pathlib import Path

from autowasm.errors import ContentRejected, StorageError
from autowasm.limits import Limits
from autowasm.wasm import abi, binary, sections
from autowasm.wasm.sections import Export, Import
from autowasm.wasm.validation import validate


@dataclass(frozen=True, slots=True)
class Description:
    """`abi` are the versions that are exported (`0.2.1`), known to Envoy or not."""

    abi: tuple[str, ...] = ()
    imports: tuple[Import, ...] = ()
    exports: tuple[Export, ...] = ()


def describe_module(path: Path, *, limits: Limits) -> Description:
    """Read the module in the file `path`. Blocks (pool `parsing`). Raises StorageError when it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(limits.module_bytes + 1)
    except OSError as error:
        raise StorageError(f"cannot read the module at {path}: {error.strerror}") from error
    try:
        return _describe(data, limits=limits)
    except ContentRejected:
        return Description()


def _describe(data: bytes, *, limits: Limits) -> Description:
    binary.check_header(data)
    found = {
        section.id: section
        for section in binary.sections(data, most=limits.sections)
        if section.id in (binary.IMPORT, binary.EXPORT)
    }
    validate(data, limits=limits)  # the readers below are made for modules that passed
    imports: tuple[Import, ...] = ()
    exports: tuple[Export, ...] = ()
    if section := found.get(binary.IMPORT):
        imports = sections.read_imports(section.reader(data), limits=limits)
    if section := found.get(binary.EXPORT):
        exports = sections.read_exports(section.reader(data), limits=limits)
    versions = (
        export.name.removeprefix(abi.ABI_PREFIX).replace("_", ".")
        for export in exports
        if export.kind == sections.FUNCTION and export.name.startswith(abi.ABI_PREFIX)
    )
    return Description(tuple(versions), imports, exports)
