"""The checks of a module before it is published (ADR 5), and its description for `wasmc inspect`.

The checks do not run the module: a valid module can still trap in its start function or refuse its configuration.
Invariants: a ModuleInfo exists only for bytes that passed every check; each check detects a kind of module that a real Envoy fetches but cannot load,
so that it answers 503 from then on; for any bytes the outcome of a check is a ModuleInfo or
ContentRejected, and the outcome of a description is a Description.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from autowasm.envoyversion import OLDEST_ENVOY, EnvoyVersion
from autowasm.errors import ContentRejected, StorageError
from autowasm.limits import Limits
from autowasm.reasons import Reason
from autowasm.text import listed
from autowasm.wasm import abi, binary, sections
from autowasm.wasm.abi import check_host_functions
from autowasm.wasm.binary import BinaryReader, Section
from autowasm.wasm.bodies import Bodies
from autowasm.wasm.envoycrash import check_boundary, check_references
from autowasm.wasm.sections import (
    Export,
    Import,
    Storage,
    find_linked_type,
    find_unknown_type,
    read_function_types,
    read_global_types,
    read_memories,
    read_signatures,
    read_tables,
)
from autowasm.wasm.start import (
    GO_ADVICE,
    Segment,
    check_segments,
    check_start,
    is_go,
    read_data,
    read_elements,
)
from autowasm.wasm.validation import validate


@dataclass(frozen=True, slots=True)
class Description:
    """Imports, exports and ABI of a module, also of a refused one: the parts that can be read.

    `abi` are the exported ABI versions (`0.2.1`), known to Envoy or not.
    """

    abi: tuple[str, ...] = ()
    imports: tuple[Import, ...] = ()
    exports: tuple[Export, ...] = ()


def describe_module(path: Path, *, limits: Limits) -> Description:
    """Describe the module in the file `path`. Blocks (pool `parsing`). Raises StorageError when the file cannot be read."""
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
    validate(data, limits=limits)  # the readers below expect a valid module
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


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """Facts of a module that passed. `size` in bytes, `abi` such as `0.2.1`."""

    size: int
    abi: str
    unchecked: str
    """One sentence about the parts that could not be checked; empty if all were checked."""


def inspect_module(
    path: Path,
    *,
    limits: Limits,
    allow_imports: frozenset[str],
    envoy: EnvoyVersion = OLDEST_ENVOY,
) -> ModuleInfo:
    """Check the module in the file `path`. Blocks (pool `parsing`); holds the module in memory twice.

    `allow_imports` are further functions that the user's Envoys offer, as `module.name`; `envoy` is the oldest Envoy.
    Raises ContentRejected with the reasons of `inspect_bytes`, and StorageError when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            # Not mmap: if the file shrinks, access to the mapping kills the process.
            data = file.read(limits.module_bytes + 1)
            size = max(file.seek(0, 2), len(data))
    except OSError as error:
        raise StorageError(f"cannot read the module at {path}: {error.strerror}") from error
    if size > limits.module_bytes:
        raise too_large(size, limits=limits)
    return inspect_bytes(data, limits=limits, allow_imports=allow_imports, envoy=envoy)


def inspect_bytes(
    data: bytes,
    *,
    limits: Limits,
    allow_imports: frozenset[str],
    envoy: EnvoyVersion = OLDEST_ENVOY,
) -> ModuleInfo:
    """Check a module. Raises ContentRejected with one of these reasons.

    `TooLarge` (the module, or one of its parts, exceeds a limit of Envoy or ours), `NotWasm`, `Truncated`,
    `WasmComponent`, `WasmInvalid`, `AbiMissing`, `AbiUnsupported`, `ExportMissing` (no memory or no allocator),
    `ImportUnknown`, `ImportMismatch`, `ExportMismatch` (the type of a function differs from Envoy's, or a type crashes
    Envoy), `EnvoyCrash` (a host function may be called by reference), `StartFails` (a program, or a start function that
    calls a function that Envoy forbids there).
    """
    if len(data) > limits.module_bytes:
        raise too_large(len(data), limits=limits)
    binary.check_header(data)
    parts = _Parts(data, limits=limits)
    validation = validate(data, limits=limits)
    imports, exports = parts.imports(), parts.exports()
    version = _abi_version(exports, data)
    check_host_functions(parts, imports, exports, version, allow_imports=allow_imports, envoy=envoy)
    _check_needed_exports(imports, exports)
    check_boundary(parts, imports, exports, limits=limits)
    for kind in (sections.MEMORY, sections.TABLE):
        imported = [each.storage for each in imports if each.kind == kind and each.storage]
        check_segments(kind, parts.segments(kind), [*imported, *parts.storages(kind)])
    check_references(parts, imports, exports, data=data, validation=validation, limits=limits)
    check_start(parts, imports, exports, data=data)
    parts.check_function_names()
    return ModuleInfo(len(data), version, str(validation))


def check_types(data: bytes, *, limits: Limits) -> None:
    """Check that the types of a valid module can be exchanged with a host through wasm-c-api, as Envoy and wasmtime do.

    Raises ContentRejected: `ImportMismatch`, `ExportMismatch`, `TooLarge`.
    """
    parts = _Parts(data, limits=limits)
    check_boundary(parts, parts.imports(), parts.exports(), limits=limits)


def too_large(size: int, *, limits: Limits) -> ContentRejected:
    """The error for a module of `size` bytes."""
    return ContentRejected(
        f"the module has {size} bytes, but Envoy accepts at most {limits.module_bytes}: strip it "
        "(wasm-strip, wasm-opt -Oz, `strip = true` in Cargo.toml)",
        reason=Reason.TOO_LARGE,
    )


class _Parts:
    """The sections of one module: located once, read on demand."""

    def __init__(self, data: bytes, *, limits: Limits) -> None:
        self._data = data
        self._limits = limits
        self._sections: dict[int, Section] = {}
        self._names: Section | None = None
        for section in binary.sections(data, most=limits.sections):
            if section.id != binary.CUSTOM:
                self._sections.setdefault(section.id, section)
            elif section.name == b"name" and self._names is None:
                self._names = section

    def reader(self, section: int) -> BinaryReader | None:
        found = self._sections.get(section)
        return found.reader(self._data) if found else None

    def bodies(self) -> Bodies:
        section = self._sections.get(binary.CODE) or Section(binary.CODE, 0, 0)
        return Bodies(section, self._data, limits=self._limits)

    def imports(self) -> tuple[Import, ...]:
        section = self._sections.get(binary.IMPORT)
        return (
            sections.read_imports(section.reader(self._data), limits=self._limits)
            if section
            else ()
        )

    def exports(self) -> tuple[Export, ...]:
        section = self._sections.get(binary.EXPORT)
        return (
            sections.read_exports(section.reader(self._data), limits=self._limits)
            if section
            else ()
        )

    def function_types(self, wanted: set[int]) -> dict[int, int]:
        section = self._sections.get(binary.FUNCTION)
        return read_function_types(section.reader(self._data), wanted) if section else {}

    def signatures(self, wanted: set[int]) -> dict[int, str]:
        return read_signatures(self._types(), wanted, limits=self._limits)

    def check_function_names(self) -> None:
        if self._names is not None:
            sections.check_function_names(self._names.reader(self._data), limits=self._limits)

    def storages(self, kind: str) -> list[Storage]:
        if kind == sections.TABLE:
            section = self._sections.get(binary.TABLE)
            return read_tables(section.reader(self._data), limits=self._limits) if section else []
        section = self._sections.get(binary.MEMORY)
        return read_memories(section.reader(self._data)) if section else []

    def segments(self, kind: str) -> Iterable[Segment]:
        section = self._sections.get(binary.DATA if kind == sections.MEMORY else binary.ELEMENT)
        if section is None:
            return ()
        read = read_data if kind == sections.MEMORY else read_elements
        return read(section.reader(self._data), limits=self._limits)

    def global_types(self, wanted: set[int]) -> dict[int, int]:
        section = self._sections.get(binary.GLOBAL)
        if section is None:
            return {}
        reader = section.reader(self._data)
        return read_global_types(reader, wanted, limits=self._limits)

    def find_linked_type(self, wanted: set[int]) -> int | None:
        return find_linked_type(self._types(), wanted, limits=self._limits) if wanted else None

    def find_unknown_type(self, wanted: set[int]) -> int | None:
        return find_unknown_type(self._types(), wanted, limits=self._limits) if wanted else None

    def _types(self) -> BinaryReader:
        """The type section. A valid module that imports or exports a function has one."""
        return self._sections[binary.TYPE].reader(self._data)


def _abi_version(exports: tuple[Export, ...], data: bytes) -> str:
    """The version that Envoy uses: the first one exported as a function (`BytecodeUtil::getAbiVersion`)."""
    others = []
    for export in exports:
        if export.kind == sections.FUNCTION and export.name.startswith(abi.ABI_PREFIX):
            version = export.name.removeprefix(abi.ABI_PREFIX).replace("_", ".")
            if version in abi.ABIS:
                return version
            others.append(export.name)
    known = ", ".join(abi.ABIS)
    if others:
        raise ContentRejected(
            f"the module exports {listed(others)}, an ABI version that Envoy does not know "
            f"(it knows {known}): build it with an SDK for one of those",
            reason=Reason.ABI_UNSUPPORTED,
        )
    if is_go(data):
        advice = f"use github.com/proxy-wasm/proxy-wasm-go-sdk, and {GO_ADVICE}"
    else:
        advice = "build it with a proxy-wasm SDK, as a library (cdylib, c-shared, reactor) rather than a program"
    raise ContentRejected(
        f"the module is not a proxy-wasm filter: it exports no function {abi.ABI_PREFIX}… "
        f"(Envoy knows {known}); {advice}",
        reason=Reason.ABI_MISSING,
    )


def _check_needed_exports(imports: tuple[Import, ...], exports: tuple[Export, ...]) -> None:
    kinds = {each.kind for each in imports} | {each.kind for each in exports}
    if sections.MEMORY not in kinds:
        raise ContentRejected(
            "the module exports no memory, and Envoy crashes at its first call into such a module: "
            'export its memory (in text: (memory (export "memory") 1))',
            reason=Reason.EXPORT_MISSING,
        )
    functions = {each.name for each in exports if each.kind == sections.FUNCTION}
    if functions.isdisjoint(abi.ALLOCATORS):
        raise ContentRejected(
            "the module exports neither malloc nor proxy_on_memory_allocate, one of which Envoy "
            "needs to hand it data: build it with a proxy-wasm SDK, or export a function "
            "proxy_on_memory_allocate(size) that returns an address",
            reason=Reason.EXPORT_MISSING,
        )
