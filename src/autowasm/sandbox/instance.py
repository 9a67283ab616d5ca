"""One instance of a module: its memory, its exports, its imports, and how a call into it ends.

The only part that uses wasmtime's C interface. Invariants: every access to the module's memory is checked against its
current size, because it grows and moves between two calls; a call either returns or raises ModuleFailed; an exception of a
host function ends the module and propagates unchanged out of the call.

Source: proxy-wasm-cpp-host src/v8/v8.cc `link` (the handling of imports and exports), `getMemory`, `getFailMessage`.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from autowasm.sandbox.engine import Compiled
from autowasm.sandbox.errors import FailureKind, ModuleFailed
from autowasm.sandbox.plugin import SandboxLimits
from autowasm.sandbox.protocol import U32
from autowasm.text import shown

HostCallback = Callable[[tuple[int, ...]], int | None]
"""A host function. It gets the arguments as unsigned numbers, and returns a number or, for a function without result, None."""

_FRAMES: Final = 20
"""As V8's `--stack-trace-limit` in Envoy."""

_TRAPS: Final = {
    "MEMORY_OUT_OF_BOUNDS": "it accessed memory out of bounds",
    "HEAP_MISALIGNED": "an atomic access was not aligned",
    "TABLE_OUT_OF_BOUNDS": "it accessed a table out of bounds",
    "INDIRECT_CALL_TO_NULL": "it called an empty table entry",
    "BAD_SIGNATURE": "it called a function of a different type",
    "INTEGER_OVERFLOW": "an integer operation overflowed",
    "INTEGER_DIVISION_BY_ZERO": "it divided by zero",
    "BAD_CONVERSION_TO_INTEGER": "a number did not fit into an integer",
    "UNREACHABLE": "it reached an unreachable instruction, as programs do that panic or abort",
    "NULL_REFERENCE": "it used a null reference",
    "ARRAY_OUT_OF_BOUNDS": "it accessed an array out of bounds",
    "CAST_FAILURE": "a cast failed",
    "UNCAUGHT_EXCEPTION": "it threw an exception and did not catch it",
    "ATOMIC_WAIT_NON_SHARED_MEMORY": "it waited on memory that is not shared",
}
_THROWN: Final = "thrown Wasm exception"
_OURS: Final = {
    # Envoy's stack is smaller, and its compiler needs less of it: 100 000 calls of a small function fit, and 40 000 here.
    "STACK_OVERFLOW": "it exceeded the stack limit of the sandbox, as endless recursion does",
    "OUT_OF_FUEL": "it exceeded the fuel limit of the sandbox",
    "INTERRUPT": "it exceeded the time limit of the sandbox",
    "ALLOCATION_TOO_LARGE": "it exceeded the memory limit of the sandbox",
}


@dataclass(frozen=True, slots=True)
class Imported:
    """A function that the module imports, with its type in Envoy's notation."""

    name: str
    signature: str


class Instance:
    """A store with one instance in it.

    Nothing runs before `instantiate`.
    """

    def __init__(self, compiled: Compiled, *, limits: SandboxLimits, fuel: int) -> None:
        from wasmtime import Store, _ffi  # noqa: PLC0415

        self._ffi: Any = _ffi
        self._engine = compiled.engine
        self._limits = limits
        self._pending: Exception | None = None
        self._callbacks: list[Any] = []  # ctypes does not keep them alive
        store = Store(compiled.engine.wasmtime)
        store.set_limits(
            memory_size=limits.memory_bytes,
            table_elements=limits.table_elements,
            instances=1,
        )
        self._store: Any = store
        self.refuel(fuel)
        self._memory: Any = None
        self._functions: dict[str, Any] = {}
        self._results: dict[str, int] = {}

    def instantiate(self, module: Any, resolve: Callable[[Imported], HostCallback]) -> None:
        """Link the imports, fill memory and tables, and run the start function of the WebAssembly module (`(start)`).

        `resolve` gives the host function for an import, or raises ModuleFailed. Raises ModuleFailed.
        """
        from wasmtime import Func, Memory  # noqa: PLC0415

        imports = [self._import(each, resolve) for each in module.imports]
        instance = self._instantiate(module, imports)
        for name, extern in instance.exports(self._store).items():
            if isinstance(extern, Func):
                self._functions[name] = extern
            elif isinstance(extern, Memory):
                self._memory = extern

    # --- fuel and time

    @property
    def fuel(self) -> int:
        """The remaining units."""
        return int(self._store.get_fuel())

    def refuel(self, fuel: int) -> None:
        """Grant `fuel` units and the time of the limits, from now on."""
        self._store.set_fuel(fuel)
        self._store.set_epoch_deadline(self._engine.ticks(self._limits.seconds))

    def charge(self, units: int) -> None:
        """Consume fuel for work of the host. Raises ModuleFailed (`LIMIT`)."""
        left = self.fuel - units
        if left <= 0:
            raise ModuleFailed(FailureKind.LIMIT, _OURS["OUT_OF_FUEL"])
        self._store.set_fuel(left)

    # --- memory

    @property
    def memory_bytes(self) -> int:
        """The current size of the memory; 0 if there is none."""
        return int(self._memory.data_len(self._store)) if self._memory is not None else 0

    def read(self, address: int, size: int) -> bytes | None:
        """A copy of `size` bytes; None unless they are all within the memory."""
        base = self._checked(address, size)
        return None if base is None else ctypes.string_at(base, size)

    def write(self, address: int, data: bytes) -> bool:
        """Copy `data` into the memory; False if it does not fit there."""
        base = self._checked(address, len(data))
        if base is None:
            return False
        ctypes.memmove(base, data, len(data))
        return True

    def _checked(self, address: int, size: int) -> int | None:
        if self._memory is None:
            raise ModuleFailed(
                FailureKind.CRASH, "the module has no memory, so Envoy crashes at this call"
            )
        if address + size > U32 or address + size > self.memory_bytes:
            return None
        self.charge_copy(size)
        return ctypes.addressof(self._memory.data_ptr(self._store).contents) + address

    def charge_copy(self, size: int) -> None:
        """Account for a copy of `size` bytes. Raises ModuleFailed (`LIMIT`)."""
        if size > self._limits.copy_bytes:
            raise ModuleFailed(
                FailureKind.LIMIT,
                f"it passed {size} bytes to the host at once, but the sandbox copies at most {self._limits.copy_bytes}",
            )
        self.charge(size)

    # --- calls

    def signature(self, name: str) -> str | None:
        """The type of an exported function in Envoy's notation; None if there is no such function."""
        function = self._functions.get(name)
        if function is None:
            return None
        kind = function.type(self._store)
        self._results[name] = len(kind.results)
        return _signature(kind)

    def call(self, name: str, *arguments: int) -> int:
        """Call an exported function with i32 arguments; returns its result as an unsigned number, 0 if it has none.

        `signature` must have been called before. Raises ModuleFailed, or the exception of a host function.
        """
        ffi = self._ffi
        function = self._functions[name]
        parameters = (ffi.wasmtime_val_t * len(arguments))()
        for slot, argument in zip(parameters, arguments, strict=True):
            slot.kind = ffi.WASMTIME_I32.value
            slot.of.i32 = argument
        results = (ffi.wasmtime_val_t * 1)()
        count = self._results[name]
        trap = ctypes.POINTER(ffi.wasm_trap_t)()
        with self._engine.watched():
            error = ffi.wasmtime_func_call(
                self._store._context(),
                ctypes.byref(function._func),
                parameters,
                len(arguments),
                results,
                count,
                ctypes.byref(trap),
            )
        self._raise(name, error, trap)
        return results[0].of.i32 & U32 if count else 0

    def _raise(self, name: str, error: Any, trap: Any) -> None:
        """Raise the exception that ended a call, if there is one."""
        from wasmtime import Trap, WasmtimeError  # noqa: PLC0415

        if trap:
            raise self._ended(name, Trap._from_ptr(trap))
        if error:  # even if a host function ended the module
            raise self._ended(name, WasmtimeError._from_ptr(error))

    def _ended(self, name: str, cause: Any) -> Exception:
        """The exception for a trap or an error of the engine: that of the host function, if one ended the module."""
        pending, self._pending = self._pending, None
        frames = self._frames(cause)
        if isinstance(pending, ModuleFailed):
            pending.frames = pending.frames or frames
            pending.function = pending.function or name
        return pending or _failure(name, cause, frames)

    def _frames(self, cause: Any) -> tuple[str, ...]:
        """The functions that were running, innermost first."""
        from wasmtime import Trap  # noqa: PLC0415
        from wasmtime._trap import Frame, FrameList  # noqa: PLC0415

        if isinstance(cause, Trap):
            found = cause.frames
        else:
            listed = FrameList(cause)
            self._ffi.wasmtime_error_wasm_trace(cause.ptr(), ctypes.byref(listed.vec))
            found = [Frame._from_ptr(listed.vec.data[at], listed) for at in range(listed.vec.size)]
        return tuple(
            shown(frame.func_name or f"function {frame.func_index}") for frame in found[:_FRAMES]
        )

    # --- instantiation

    def _instantiate(self, module: Any, imports: list[Any]) -> Any:
        import wasmtime  # noqa: PLC0415

        try:
            with self._engine.watched():
                return wasmtime.Instance(self._store, module, imports)
        except wasmtime.Trap as trap:
            raise self._ended("(start)", trap) from trap
        except wasmtime.WasmtimeError as error:
            if self._pending is not None:
                raise self._ended("(start)", error) from error
            raise ModuleFailed(
                FailureKind.LIMIT,
                f"the module cannot be instantiated within the limits of the sandbox: {_first_line(error)}",
            ) from error

    def _import(self, wanted: Any, resolve: Callable[[Imported], HostCallback]) -> Any:
        from wasmtime import (  # noqa: PLC0415
            FuncType,
            Memory,
            MemoryType,
            Table,
            TableType,
            WasmtimeError,
        )

        name = f"{wanted.module}.{wanted.name}"
        kind = wanted.type
        try:
            if isinstance(kind, FuncType):
                return self._function(kind, resolve(Imported(name, _signature(kind))))
            if isinstance(kind, MemoryType):
                self._memory = Memory(self._store, kind)
                return self._memory
            if isinstance(kind, TableType):
                return Table(self._store, kind, None)
        except WasmtimeError as error:
            raise ModuleFailed(
                FailureKind.LIMIT,
                f"the import {shown(name)} exceeds the limits of the sandbox: {_first_line(error)}",
            ) from error
        raise ModuleFailed(
            FailureKind.LINK, f"the module imports {shown(name)}, but Envoy offers only functions"
        )

    def _function(self, kind: Any, callback: HostCallback) -> Any:
        from wasmtime import Func  # noqa: PLC0415

        ffi = self._ffi
        masks = [U32 if str(each) == "i32" else U32 << 32 | U32 for each in kind.params]
        has_result = bool(kind.results)  # an i32: Envoy has no function with another
        i32 = ffi.WASMTIME_I32.value

        def enter(_env: Any, _caller: Any, given: Any, _n: int, out: Any, _m: int) -> Any:
            try:
                values = tuple(
                    (given[at].of.i32 if mask == U32 else given[at].of.i64) & mask
                    for at, mask in enumerate(masks)
                )
                answer = callback(values)
                if has_result:
                    out[0].kind = i32
                    out[0].of.i32 = answer
            except Exception as error:  # it must not cross the engine: `_raise` raises it again
                self._pending = error
                trap = ffi.wasmtime_trap_new(b"host", 4)
                return ctypes.cast(trap, ctypes.c_void_p).value
            return 0

        pointer = ffi.wasmtime_func_callback_t(enter)
        self._callbacks.append(pointer)
        made = ffi.wasmtime_func_t()
        ffi.wasmtime_func_new(
            self._store._context(),
            kind.ptr(),
            pointer,
            None,
            ctypes.cast(0, ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
            ctypes.byref(made),
        )
        return Func._from_raw(made)


def _first_line(error: object) -> str:
    return shown((str(error).splitlines() or [""])[0], most=200)


def _signature(kind: Any) -> str:
    parameters = " ".join(str(each) for each in kind.params) or "void"
    results = " ".join(str(each) for each in kind.results) or "void"
    return f"{parameters} -> {results}"


def _failure(name: str, cause: Any, frames: tuple[str, ...]) -> ModuleFailed:
    code = getattr(cause, "trap_code", None)
    known = code.name if code is not None else ""
    if known in _OURS:
        return ModuleFailed(FailureKind.LIMIT, _OURS[known], function=name, frames=frames)
    text = str(cause).strip()
    if text.endswith(_THROWN):  # wasmtime has no code for it
        known = "UNCAUGHT_EXCEPTION"
    if known in _TRAPS:
        return ModuleFailed(FailureKind.TRAP, _TRAPS[known], function=name, frames=frames)
    message = f"the engine reports: {shown((text.splitlines() or [''])[-1].strip(), most=200)}"
    return ModuleFailed(FailureKind.UNSUPPORTED, message, function=name, frames=frames)
