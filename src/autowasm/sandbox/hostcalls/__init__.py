"""The host functions that Envoy offers, as tables: the function, its result, and the phases in which it may be called.

Their names, types and ABI versions are those of `wasm/abi.py`; `HOST_CALLS` has each of them, which a test checks.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from autowasm.sandbox.host import Call
from autowasm.sandbox.hostcalls import callout, general, http, shareddata, wasi
from autowasm.wasm import abi

HOST_CALLS: Final[Mapping[str, Call]] = MappingProxyType(
    {
        f"env.{name}": call
        for table in (general.CALLS, http.CALLS, shareddata.CALLS, callout.CALLS)
        for name, call in table.items()
    }
    | {f"{module}.{name}": call for module in abi.WASI_MODULES for name, call in wasi.CALLS.items()}
)
"""Every host function, as `module.name`."""
