"""The proxy-wasm interface of Envoy, and the comparison of a module's imports and exports with it.

The tables have the ABI versions, the functions that Envoy offers to a module, and the functions that it calls in one; types
are in Envoy's notation. Invariants: a function is listed with the name and type that a real Envoy reported, for every ABI
version (tests/e2e/test_wasm_envoy.py checks Envoy 1.36.4 and 1.40.0 again); a wrong type is reported before a missing
function, because no flag helps against it; the message about missing functions lists every one, in the form of the flag.

Sources: github.com/proxy-wasm/proxy-wasm-cpp-host, the library in Envoy: src/wasm.cc `registerCallbacks` (what a module
may import, by ABI version) and `getFunctions` (which exports Envoy uses) at commit 018cb3a, include/proxy-wasm/exports.h at
commit 4637c9f (types), src/v8/v8.cc `link` at commit 011e2b3 (an import of another type than the host's is refused, as is a
global; a memory or a table is created for the module). Envoy 1.40.0 was built from other versions of these files, so the
tables come from the binaries: for an import with a wrong type Envoy reports the right one.

Two facts that are not in the sources, both seen on 1.36.4 and 1.40.0: a module without a memory that Envoy can access crashes
the whole proxy (segmentation fault) at its first host call with a pointer; an imported tag crashes it when the module loads.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from autowasm.envoyversion import OLDEST_ENVOY, EnvoyVersion
from autowasm.errors import ContentRejected
from autowasm.reasons import Reason
from autowasm.text import shown
from autowasm.wasm import sections
from autowasm.wasm.sections import Export, Import

ABI_PREFIX: Final = "proxy_abi_version_"
ABIS: Final = ("0.1.0", "0.2.0", "0.2.1")
"""Envoy 1.40 refuses 0.3.0 as "Missing or unknown Proxy-Wasm ABI version"."""

ALLOCATORS: Final = ("malloc", "proxy_on_memory_allocate")
"""Envoy uses the first that is exported, and refuses a module with neither."""


@dataclass(frozen=True, slots=True)
class HostFunction:
    """A function that Envoy offers. `since` is the first release that has it, or the oldest supported release."""

    signature: str
    abis: tuple[str, ...] = ABIS
    since: EnvoyVersion = OLDEST_ENVOY


_I = "i32 "

_ENV = {
    "i32 -> i32": (
        "proxy_grpc_close proxy_grpc_cancel proxy_set_tick_period_milliseconds "
        "proxy_get_current_time_nanoseconds proxy_set_effective_context"
    ),
    "i32 -> void": "emscripten_notify_memory_growth",
    "void -> i32": "proxy_done",
    "i32 i32 -> i32": "proxy_get_header_map_size proxy_get_metric pthread_equal",
    "i32 i64 -> i32": "proxy_increment_metric proxy_record_metric",
    "i32 i32 i32 -> i32": (
        "proxy_log proxy_get_status proxy_register_shared_queue proxy_dequeue_shared_queue "
        "proxy_enqueue_shared_queue proxy_remove_header_map_value proxy_get_header_map_pairs "
        "proxy_set_header_map_pairs proxy_get_buffer_status"
    ),
    "i32 i32 i32 i32 -> i32": (
        "proxy_set_property proxy_get_property proxy_grpc_send proxy_define_metric"
    ),
    "i32 i32 i32 i32 i32 -> i32": (
        "proxy_get_shared_data proxy_set_shared_data proxy_resolve_shared_queue "
        "proxy_get_header_map_value proxy_add_header_map_value proxy_replace_header_map_value "
        "proxy_get_buffer_bytes proxy_set_buffer_bytes"
    ),
    f"{_I * 6}-> i32": "proxy_call_foreign_function",
    f"{_I * 8}-> i32": "proxy_send_local_response",
    f"{_I * 9}-> i32": "proxy_grpc_stream",
    f"{_I * 10}-> i32": "proxy_http_call",
    f"{_I * 12}-> i32": "proxy_grpc_call",
}

_ENV_OF_ABI = (
    (("0.1.0",), "void -> i32", "continue_request continue_response clear_route_cache"),
    (("0.1.0",), "i32 i32 -> i32", "get_configuration"),
    (("0.2.0", "0.2.1"), "i32 -> i32", "continue_stream close_stream"),
    (("0.2.1",), "i32 -> i32", "get_log_level"),
)

_WASI = {
    "i32 -> i32": "fd_close",
    "i32 -> void": "proc_exit",
    "void -> i32": "sched_yield",
    "i32 i32 -> i32": (
        "args_get args_sizes_get environ_get environ_sizes_get fd_fdstat_get fd_fdstat_set_flags "
        "fd_prestat_get random_get"
    ),
    "i32 i32 i32 -> i32": "fd_prestat_dir_name",
    "i32 i64 i32 -> i32": "clock_time_get",
    "i32 i32 i32 i32 -> i32": "fd_read fd_write poll_oneoff",
    "i32 i64 i32 i32 -> i32": "fd_seek",
    "i32 i32 i32 i32 i32 i64 i64 i32 i32 -> i32": "path_open",
}

_WASI_LATER: Final = EnvoyVersion(1, 39)
"""1.39.0 has the rest of WASI preview 1 (most functions return "not supported"); 1.37.0 and 1.36.4 do not."""

_WASI_SINCE = {
    "i32 -> i32": "fd_datasync fd_sync",
    "i32 i32 -> i32": "clock_res_get fd_filestat_get fd_renumber fd_tell sock_shutdown",
    "i32 i64 -> i32": "fd_filestat_set_size",
    "i32 i32 i32 -> i32": (
        "path_create_directory path_remove_directory path_unlink_file sock_accept"
    ),
    "i32 i64 i64 -> i32": "fd_allocate fd_fdstat_set_rights",
    "i32 i32 i32 i32 -> i32": "path_symlink",
    "i32 i64 i64 i32 -> i32": "fd_advise fd_filestat_set_times",
    "i32 i32 i32 i32 i32 -> i32": "path_filestat_get sock_send",
    "i32 i32 i32 i64 i32 -> i32": "fd_pread fd_pwrite fd_readdir",
    f"{_I * 6}-> i32": "path_link path_readlink path_rename sock_recv",
    "i32 i32 i32 i32 i64 i64 i32 -> i32": "path_filestat_set_times",
}

WASI_MODULES: Final = ("wasi_snapshot_preview1", "wasi_unstable")
"""Envoy offers the same functions under both names."""


def _host_functions() -> Iterator[tuple[str, HostFunction]]:
    for signature, names in _ENV.items():
        for name in names.split():
            yield f"env.{name}", HostFunction(signature)
    for abis, signature, names in _ENV_OF_ABI:
        for name in names.split():
            yield f"env.proxy_{name}", HostFunction(signature, abis)
    for module in WASI_MODULES:
        for table, since in ((_WASI, OLDEST_ENVOY), (_WASI_SINCE, _WASI_LATER)):
            for signature, names in table.items():
                for name in names.split():
                    yield f"{module}.{name}", HostFunction(signature, since=since)


HOST_FUNCTIONS: Final[Mapping[str, HostFunction]] = MappingProxyType(dict(_host_functions()))
"""The functions that a module may import, as `module.name`."""

_CALLED = {
    "i32 i32 -> i32": (
        "validate_configuration on_vm_start on_configure on_request_trailers on_request_metadata "
        "on_response_trailers on_response_metadata"
    ),
    "i32 -> void": "on_tick on_log on_delete",
    "i32 i32 -> void": (
        "on_context_create on_downstream_connection_close on_upstream_connection_close "
        "on_queue_ready"
    ),
    "i32 -> i32": "on_new_connection on_done",
    "i32 i32 i32 -> i32": ("on_downstream_data on_upstream_data on_request_body on_response_body"),
    "i32 i32 i32 -> void": (
        "on_grpc_receive on_grpc_close on_grpc_receive_initial_metadata "
        "on_grpc_receive_trailing_metadata"
    ),
    "i32 i32 i32 i32 i32 -> void": "on_http_call_response",
}


def called_functions(abi: str, exported: frozenset[str]) -> dict[str, str]:
    """The exports that Envoy uses from a module of version `abi` that exports the functions `exported`: name to type.

    Envoy refuses a module that exports such a name with another type ("Bad function signature").
    """
    called = {
        f"proxy_{name}": signature for signature, names in _CALLED.items() for name in names.split()
    }
    headers = "i32 i32 -> i32" if abi == "0.1.0" else "i32 i32 i32 -> i32"
    called["proxy_on_request_headers"] = called["proxy_on_response_headers"] = headers
    if abi != "0.1.0":
        called["proxy_on_foreign_function"] = "i32 i32 i32 -> void"
    if "_initialize" in exported:
        # Envoy 1.40 uses __main_void, 1.36.4 does not.
        called |= {"_initialize": "void -> void", "main": "i32 i32 -> i32"}
        called |= {"__main_void": "void -> i32"}
    else:
        called["_start"] = "void -> void"
    allocator = next((name for name in ALLOCATORS if name in exported), ALLOCATORS[0])
    called[allocator] = "i32 -> i32"
    return called


ALLOWED_AT_START: Final = frozenset(
    {"env.proxy_log", "env.emscripten_notify_memory_growth"}
    | {
        f"{module}.{name}"
        for module in WASI_MODULES
        for name in [
            "args_get",
            "args_sizes_get",
            "environ_get",
            "environ_sizes_get",
            "fd_fdstat_get",
            "fd_fdstat_set_flags",
            "fd_prestat_get",
            "fd_prestat_dir_name",
            "random_get",
            "clock_time_get",
            "fd_write",
            "poll_oneoff",
        ]
    }
    | {name for name, function in HOST_FUNCTIONS.items() if function.since > OLDEST_ENVOY}
)
"""Functions that a module may call in `_initialize`, `main` and `_start`; any other is a "restricted callback".

Envoy 1.36.4 allows neither `emscripten_notify_memory_growth` nor `poll_oneoff` there, and 1.40.0 does.
"""


FOREIGN_MODULES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gojs": "it was built with GOOS=js; build with GOOS=wasip1 and -buildmode=c-shared",
        "go": "it was built with GOOS=js; build with GOOS=wasip1 and -buildmode=c-shared",
        "wbg": "it was built for a browser with wasm-bindgen; build for wasm32-wasip1 without it",
        "__wbindgen_placeholder__": (
            "it was built for a browser with wasm-bindgen; build for wasm32-wasip1 without it"
        ),
    }
)
"""Import modules that only another kind of host offers, with the advice for the message."""


_LISTED = 200
"""Number of functions that a message lists. Envoy offers about 90; a module that lacks more is not a filter."""


class AbiParts(Protocol):
    """The sections of the module that the comparison needs."""

    def function_types(self, wanted: set[int]) -> dict[int, int]:
        """The type indices of these functions. Functions count from the first that is not imported."""

    def signatures(self, wanted: set[int]) -> dict[int, str]:
        """Function types in Envoy's notation, by their index."""


def check_host_functions(
    parts: AbiParts,
    imports: Sequence[Import],
    exports: Sequence[Export],
    abi_version: str,
    *,
    allow_imports: frozenset[str],
    envoy: EnvoyVersion,
) -> None:
    """Raise ContentRejected: `ImportUnknown`, `ImportMismatch`, `ExportMismatch`.

    `allow_imports` are additional functions, as `module.name`; `envoy` is the oldest Envoy for the module.
    """
    for each in imports:
        if each.kind in (sections.GLOBAL, sections.TAG):
            raise ContentRejected(
                f"the module imports the {each.kind} {shown(str(each))}, but Envoy offers only functions: link the module "
                "without it",
                reason=Reason.IMPORT_UNKNOWN,
            )
    _check_types(parts, imports, exports, abi_version)
    names = dict.fromkeys(str(each) for each in imports if each.kind == sections.FUNCTION)
    missing = [
        name
        for name in names
        if name not in allow_imports and not _is_offered(name, abi_version, envoy)
    ]
    if missing:
        raise ContentRejected(
            _why_missing(missing, abi_version, envoy), reason=Reason.IMPORT_UNKNOWN
        )


def _is_offered(name: str, abi_version: str, envoy: EnvoyVersion) -> bool:
    known = HOST_FUNCTIONS.get(name)
    return known is not None and abi_version in known.abis and known.since <= envoy


def _why_missing(missing: Sequence[str], abi_version: str, envoy: EnvoyVersion) -> str:
    known = {name: HOST_FUNCTIONS[name] for name in missing if name in HOST_FUNCTIONS}
    for name, function in known.items():
        if abi_version not in function.abis:
            return (
                f"the module imports {name}, which Envoy offers only to modules of ABI {' and '.join(function.abis)}, "
                f"but this one exports the ABI version {abi_version}: build it with a single SDK"
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
            f"{what}. Envoy offers {which} from {newer[-1]} on: if every Envoy is that version or later, use "
            f"--envoy-version={newer[-1]}. Missing: {_listed(missing)}"
        )
    for module, advice in FOREIGN_MODULES.items():
        if any(name.startswith(f"{module}.") for name in unknown):
            return f"{what}; {advice}. Missing: {_listed(missing)}"
    version = f"--envoy-version={newer[-1]} " if newer else ""
    return (
        f"{what}. If every Envoy has an extension that does, use {version}--allow-import={_listed(unknown)}"
        + (
            f" (Envoy {newer[-1]} and later offer the others: {_listed(list(known))})"
            if newer
            else ""
        )
    )


def _listed(names: Sequence[str]) -> str:
    """The names in the form of the flag, without a space at which a line could break."""
    line = ",".join(shown(name) for name in names[:_LISTED])
    more = len(names) - _LISTED
    return f"{line} and {more} more" if more > 0 else line


def _check_types(
    parts: AbiParts, imports: Sequence[Import], exports: Sequence[Export], version: str
) -> None:
    """Compare the types of the functions that Envoy and the module share by name."""
    imported = [each for each in imports if each.kind == sections.FUNCTION]
    exported = {each.name: each.index for each in exports if each.kind == sections.FUNCTION}
    called = {
        name: (exported[name], signature)
        for name, signature in called_functions(version, frozenset(exported)).items()
        if name in exported
    }
    first = len(imported)
    own = parts.function_types({index - first for index, _ in called.values() if index >= first})
    type_of = dict(enumerate(each.type_index for each in imported)) | {
        first + index: type_index for index, type_index in own.items()
    }
    offered = [each for each in imported if str(each) in HOST_FUNCTIONS]
    wanted = {each.type_index for each in offered}
    wanted |= {type_of[index] for index, _ in called.values() if index in type_of}
    signatures = parts.signatures(wanted)
    for each in offered:
        theirs = HOST_FUNCTIONS[str(each)].signature
        _check_type("imports", str(each), signatures.get(each.type_index), theirs, version)
    for name, (index, theirs) in called.items():
        _check_type("exports", name, signatures.get(type_of.get(index, -1)), theirs, version)


def _check_type(verb: str, name: str, ours: str | None, theirs: str, version: str) -> None:
    if ours != theirs:
        raise ContentRejected(
            f"the module {verb} the function {name} with the type ({ours or 'not a function'}), but Envoy defines it as "
            f"({theirs}) in ABI {version}: build the module with an SDK for that ABI",
            reason=Reason.IMPORT_MISMATCH if verb == "imports" else Reason.EXPORT_MISMATCH,
        )
