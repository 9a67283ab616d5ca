"""What a module expects of Envoy's functions, and Envoy of the module's: names and types.

Not the tables (`abi.py`). Invariants: a wrong type is reported before a missing function, because no flag helps against
it; the message about missing functions has every one of them, in the form in which the flag takes them.
"""

from collections.abc import Sequence
from typing import Protocol

from autowasm.envoyversion import EnvoyVersion
from autowasm.errors import ContentRejected
from autowasm.text import shown
from autowasm.wasm import abi, sections
from autowasm.wasm.sections import Export, Import

_LISTED = 200
"""Functions that a message has. Envoy offers about 90; a module that lacks more is no filter."""


class Parts(Protocol):
    """What has to be known of the module's own functions."""

    def function_types(self, wanted: set[int]) -> dict[int, int]:
        """The type indices of these functions, counted from the first that is not imported."""

    def signatures(self, wanted: set[int]) -> dict[int, str]:
        """Function types in Envoy's notation, by their index."""


def check_host_functions(
    parts: Parts,
    imports: Sequence[Import],
    exports: Sequence[Export],
    abi_version: str,
    *,
    allow_imports: frozenset[str],
    envoy: EnvoyVersion,
) -> None:
    """Raise ContentRejected: `ImportUnknown`, `ImportMismatch`, `ExportMismatch`.

    `allow_imports` are functions besides the standard ones, as `module.name`; `envoy` is the oldest that will run the module.
    """
    for each in imports:
        if each.kind in (sections.GLOBAL, sections.TAG):
            raise ContentRejected(
                f"the module imports the {each.kind} {shown(str(each))}, and Envoy offers functions "
                "only: link the module without it",
                reason="ImportUnknown",
            )
    _check_types(parts, imports, exports, abi_version)
    names = dict.fromkeys(str(each) for each in imports if each.kind == sections.FUNCTION)
    missing = [
        name
        for name in names
        if name not in allow_imports and not _is_offered(name, abi_version, envoy)
    ]
    if missing:
        raise ContentRejected(_why_missing(missing, abi_version, envoy), reason="ImportUnknown")


def _is_offered(name: str, abi_version: str, envoy: EnvoyVersion) -> bool:
    known = abi.HOST_FUNCTIONS.get(name)
    return known is not None and abi_version in known.abis and known.since <= envoy


def _why_missing(missing: Sequence[str], abi_version: str, envoy: EnvoyVersion) -> str:
    known = {name: abi.HOST_FUNCTIONS[name] for name in missing if name in abi.HOST_FUNCTIONS}
    for name, function in known.items():
        if abi_version not in function.abis:
            return (
                f"the module imports {name}, which Envoy offers only to modules of ABI {' and '.join(function.abis)}, "
                f"and this one exports the ABI version {abi_version}: build it with one SDK"
            )
    newer = sorted({function.since for function in known.values()})
    unknown = [name for name in missing if name not in known]
    what = (
        f"the module imports {len(missing)} functions"
        if len(missing) > 1
        else "the module imports a function"
    )
    what += f" that Envoy {envoy} does not offer"
    if not unknown:
        which = "it" if len(missing) == 1 else "them"
        return (
            f"{what}. Envoy offers {which} from {newer[-1]} on: if every Envoy here is at least that, use "
            f"--envoy-version={newer[-1]}. Missing: {_listed(missing)}"
        )
    for module, advice in abi.FOREIGN_MODULES.items():
        if any(name.startswith(f"{module}.") for name in unknown):
            return f"{what}; {advice}. Missing: {_listed(missing)}"
    version = f"--envoy-version={newer[-1]} " if newer else ""
    return (
        f"{what}. If every Envoy here has an extension that does, use {version}--allow-import={_listed(unknown)}"
        + (
            f" (Envoy {newer[-1]} and later offer the others: {_listed(list(known))})"
            if newer
            else ""
        )
    )


def _listed(names: Sequence[str]) -> str:
    """As a flag takes them, without a space at which a line could break."""
    line = ",".join(shown(name) for name in names[:_LISTED])
    more = len(names) - _LISTED
    return f"{line} and {more} more" if more > 0 else line


def _check_types(
    parts: Parts, imports: Sequence[Import], exports: Sequence[Export], version: str
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
