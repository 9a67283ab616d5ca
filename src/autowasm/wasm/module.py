"""The verdict on a module before it is published (ADR 5): will Envoy load these bytes?

Not a run of the module: a valid one can still trap in its start function or refuse its configuration. Invariants: a
ModuleInfo exists only for bytes that passed every check, each of which stands for a way in which a real Envoy fails
*after* a successful fetch, and answers 503 from then on; whatever the bytes, the outcome is a ModuleInfo or ContentRejected.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from autowasm.errors import ContentRejected, StorageError
from autowasm.limits import Limits
from autowasm.wasm import abi, binary, sections, storage, values
from autowasm.wasm.binary import Section
from autowasm.wasm.boundary import check_boundary
from autowasm.wasm.sections import Export, Import
from autowasm.wasm.segments import Segment, check_segments, read_data, read_elements
from autowasm.wasm.storage import Storage
from autowasm.wasm.validation import validate
from autowasm.wasm.wording import listed, shown


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """What a module is. `size` in bytes, `abi` such as `0.2.1`."""

    size: int
    abi: str
    imports: tuple[Import, ...]
    exports: tuple[Export, ...]


def inspect_module(path: Path, *, limits: Limits, allow_imports: frozenset[str]) -> ModuleInfo:
    """Check the module in the file `path`. Blocks (pool `parsing`); holds the module in memory twice.

    `allow_imports` are further functions that the user's Envoys offer, as `module.name`. Raises ContentRejected with the
    reasons of `inspect_bytes`, and StorageError when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            # Not mapped: a file that shrinks under a mapping kills the process.
            data = file.read(limits.module_bytes + 1)
            size = max(file.seek(0, 2), len(data))
    except OSError as error:
        raise StorageError(f"cannot read the module at {path}: {error.strerror}") from error
    if size > limits.module_bytes:
        raise too_large(size, limits=limits)
    return inspect_bytes(data, limits=limits, allow_imports=allow_imports)


def inspect_bytes(data: bytes, *, limits: Limits, allow_imports: frozenset[str]) -> ModuleInfo:
    """Check a module. Raises ContentRejected, with one of these reasons.

    `TooLarge` (the module, or one of its parts, exceeds what Envoy or we accept), `NotWasm`, `Truncated`,
    `WasmComponent`, `WasmInvalid`, `AbiMissing`, `AbiUnsupported`, `ExportMissing` (no memory or no allocator),
    `ImportUnknown`, `ImportMismatch`, `ExportMismatch` (a function has another type than Envoy's, or a type over
    which Envoy crashes).
    """
    if len(data) > limits.module_bytes:
        raise too_large(len(data), limits=limits)
    binary.check_header(data)
    parts = _Parts(data, limits=limits)
    validate(data)
    imports, exports = parts.imports(), parts.exports()
    version = _abi_version(exports)
    _check_imports(imports, version, allow_imports=allow_imports)
    _check_needed_exports(imports, exports)
    _check_types(parts, imports, exports, version)
    check_boundary(parts, imports, exports, limits=limits)
    for kind in (sections.MEMORY, sections.TABLE):
        imported = [each.storage for each in imports if each.kind == kind and each.storage]
        check_segments(kind, parts.segments(kind), [*imported, *parts.storages(kind)])
    parts.check_function_names()
    return ModuleInfo(len(data), version, imports, exports)


def too_large(size: int, *, limits: Limits) -> ContentRejected:
    """The error for a module of `size` bytes."""
    return ContentRejected(
        f"the module has {size} bytes, and Envoy accepts at most {limits.module_bytes}: strip it "
        "(wasm-strip, wasm-opt -Oz, `strip = true` in Cargo.toml)",
        reason="TooLarge",
    )


class _Parts:
    """The sections of one module, found once and read when they are asked for."""

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
        return values.read_function_types(section.reader(self._data), wanted) if section else {}

    def signatures(self, wanted: set[int]) -> dict[int, str]:
        section = self._sections.get(binary.TYPE)
        if section is None:
            return {}
        return values.read_signatures(section.reader(self._data), wanted, limits=self._limits)

    def check_function_names(self) -> None:
        if self._names is not None:
            sections.check_function_names(self._names.reader(self._data), limits=self._limits)

    def storages(self, kind: str) -> list[Storage]:
        if kind == sections.TABLE:
            section = self._sections.get(binary.TABLE)
            return (
                storage.read_tables(section.reader(self._data), limits=self._limits)
                if section
                else []
            )
        section = self._sections.get(binary.MEMORY)
        return storage.read_memories(section.reader(self._data)) if section else []

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
        return storage.read_global_types(reader, wanted, limits=self._limits)

    def find_unknown_type(self, wanted: set[int]) -> int | None:
        section = self._sections.get(binary.TYPE)
        if section is None:
            return None
        return values.find_unknown_type(section.reader(self._data), wanted, limits=self._limits)


def _abi_version(exports: tuple[Export, ...]) -> str:
    """The version that Envoy will take: the first one exported, as a function (`BytecodeUtil::getAbiVersion`)."""
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
            reason="AbiUnsupported",
        )
    raise ContentRejected(
        f"the module is not a proxy-wasm filter: it exports no function {abi.ABI_PREFIX}… "
        f"(Envoy knows {known}); build it with a proxy-wasm SDK, as a library (cdylib, c-shared, "
        "reactor) rather than a program",
        reason="AbiMissing",
    )


def _check_needed_exports(imports: tuple[Import, ...], exports: tuple[Export, ...]) -> None:
    kinds = {each.kind for each in imports} | {each.kind for each in exports}
    if sections.MEMORY not in kinds:
        raise ContentRejected(
            "the module exports no memory, and Envoy crashes at its first call into such a module: "
            'export its memory (in text: (memory (export "memory") 1))',
            reason="ExportMissing",
        )
    functions = {each.name for each in exports if each.kind == sections.FUNCTION}
    if functions.isdisjoint(abi.ALLOCATORS):
        raise ContentRejected(
            "the module exports neither malloc nor proxy_on_memory_allocate, one of which Envoy "
            "needs to hand it data: build it with a proxy-wasm SDK, or export a function "
            "proxy_on_memory_allocate(size) that returns an address",
            reason="ExportMissing",
        )


def _check_imports(
    imports: tuple[Import, ...], version: str, *, allow_imports: frozenset[str]
) -> None:
    for each in imports:
        if each.kind in (sections.GLOBAL, sections.TAG):
            raise ContentRejected(
                f"the module imports the {each.kind} {shown(str(each))}, and Envoy offers functions "
                "only: link the module without it",
                reason="ImportUnknown",
            )
    functions = {str(each): each for each in imports if each.kind == sections.FUNCTION}
    missing = [
        each
        for name, each in functions.items()
        if name not in allow_imports and not _is_offered(name, version)
    ]
    if missing:
        raise ContentRejected(_why_missing(missing, version), reason="ImportUnknown")


def _is_offered(name: str, version: str) -> bool:
    known = abi.HOST_FUNCTIONS.get(name)
    return known is not None and version in known.abis and not known.since


def _why_missing(missing: list[Import], version: str) -> str:
    names = [str(each) for each in missing]
    first = abi.HOST_FUNCTIONS.get(names[0])
    if first and version not in first.abis:
        return (
            f"the module imports {names[0]}, which Envoy offers only to modules of ABI "
            f"{' and '.join(first.abis)}, and this one exports the ABI version {version}: build it with one SDK"
        )
    allow = "allow it" if len(names) == 1 else "allow them"
    flag = f"{allow} with --allow-import {','.join(shown(name) for name in names[:5])}"
    if all((known := abi.HOST_FUNCTIONS.get(name)) and known.since for name in names):
        since = first.since if first else ""
        return (
            f"the module imports {listed(names)}, which Envoy offers only from {since} on; "
            f"if every Envoy here is at least that, {flag}"
        )
    advice = abi.FOREIGN_MODULES.get(missing[0].module, f"if your Envoy has it, {flag}")
    return f"the module imports {listed(names)}, which Envoy does not offer; {advice}"


def _check_types(
    parts: _Parts, imports: tuple[Import, ...], exports: tuple[Export, ...], version: str
) -> None:
    """Compare the types of functions that Envoy and the module know by the same name."""
    imported = [each for each in imports if each.kind == sections.FUNCTION]
    exported = {each.name: each.index for each in exports if each.kind == sections.FUNCTION}
    called = {
        name: (exported[name], signature)
        for name, signature in abi.called_functions(version, frozenset(exported)).items()
        if name in exported
    }
    first = len(imported)
    own = parts.function_types({index - first for index, _ in called.values() if index >= first})
    type_of = dict(enumerate(each.type_index for each in imported)) | {
        first + index: type_index for index, type_index in own.items()
    }
    offered = [each for each in imported if str(each) in abi.HOST_FUNCTIONS]
    wanted = {each.type_index for each in offered}
    wanted |= {type_of[index] for index, _ in called.values() if index in type_of}
    signatures = parts.signatures(wanted)
    for each in offered:
        theirs = abi.HOST_FUNCTIONS[str(each)].signature
        _check_type("imports", str(each), signatures.get(each.type_index), theirs, version)
    for name, (index, theirs) in called.items():
        _check_type("exports", name, signatures.get(type_of.get(index, -1)), theirs, version)


def _check_type(verb: str, name: str, ours: str | None, theirs: str, version: str) -> None:
    if ours != theirs:
        raise ContentRejected(
            f"the module {verb} the function {name} with the type ({ours or 'not a function'}), and "
            f"Envoy has it as ({theirs}) in ABI {version}: build the module with an SDK for that ABI",
            reason="ImportMismatch" if verb == "imports" else "ExportMismatch",
        )
