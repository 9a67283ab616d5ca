"""The engine: wasmtime with the features of Envoy's V8, fuel and interruption; and modules compiled for it.

Invariants: a module that Envoy's V8 refuses is not compiled here (wide arithmetic, custom page sizes, stack switching); every
function of a compiled module counts fuel and can be interrupted; two engines of the same wasmtime and the same `SETTINGS` on one
machine can exchange compiled modules.

Compiled modules are machine code: load only bytes that this machine wrote and that no other user could have changed.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.sandbox.errors import CannotCompile, CannotLoad
from autowasm.text import shown

_T = TypeVar("_T")

STACK_BYTES: Final = 2 * 1024 * 1024
"""Stack of a module. V8 in Envoy gives a little less than 1 MiB; a thread of this process has 8 MiB."""

SETTINGS: Final = "2"
"""Increment it with every change of `make_engine` or of the settings of compiled code."""

_LIMITS: Final = Limits()
_TICK_SECONDS: Final = 0.02


class Engine:
    """A wasmtime engine, and the thread that ends calls that run for too long. Safe to share between threads.

    `is_confined`: for a process that cannot start threads. It compiles in the calling thread and does not watch the time;
    another process does that.
    """

    def __init__(self, *, is_confined: bool = False) -> None:
        # Imported here, because programs that only read verdicts do not need these 50 ms and 30 MB.
        import wasmtime  # noqa: PLC0415

        config = wasmtime.Config()
        config.wasm_wide_arithmetic = False
        config.wasm_custom_page_sizes = False
        config.wasm_stack_switching = False
        config.wasm_component_model = False
        config.shared_memory = True
        config.consume_fuel = True
        config.epoch_interruption = True
        config.max_wasm_stack = STACK_BYTES
        config.cranelift_nan_canonicalization = True
        config.cranelift_opt_level = (
            "none"  # a module runs for milliseconds, and compiles for seconds
        )
        config.wasm_relaxed_simd_deterministic = True
        config.parallel_compilation = not is_confined
        self._is_confined = is_confined
        self.wasmtime: Any = wasmtime.Engine(config)
        self._lock = threading.Lock()
        self._watched = 0
        self._stop: threading.Event | None = None

    def ticks(self, seconds: float) -> int:
        """The number of epoch increments for which a call may run."""
        return max(2, math.ceil(seconds / _TICK_SECONDS) + 1)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count time while the block runs. Without it, no deadline is ever reached."""
        if self._is_confined:
            yield
            return
        with self._lock:
            self._watched += 1
            if self._stop is None:
                self._stop = threading.Event()
                threading.Thread(
                    target=self._tick, args=(self._stop,), name="sandbox-epoch", daemon=True
                ).start()
        try:
            yield
        finally:
            with self._lock:
                self._watched -= 1
                if not self._watched and self._stop is not None:
                    self._stop.set()
                    self._stop = None

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(_TICK_SECONDS):
            self.wasmtime.increment_epoch()


def make_engine(*, is_confined: bool = False) -> Engine:
    """A new engine. Takes about 50 ms the first time in a process, and less than 1 ms afterwards."""
    return Engine(is_confined=is_confined)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled module. Any number of virtual machines may use it at the same time."""

    engine: Engine
    module: Any

    def serialize(self) -> bytes:
        """The machine code, for `deserialize`: about 3 times the size of the module."""
        return bytes(self.module.serialize())


def compile_module(engine: Engine, wasm: bytes) -> Compiled:
    """Compile a module. Blocks: 0.1 s for a small filter, 1 s of one core for 1.9 MB from Go. Raises CannotCompile."""
    from wasmtime import Module, WasmtimeError  # noqa: PLC0415

    from autowasm.wasm.module import check_types  # noqa: PLC0415  # as above: not for programs that read verdicts

    if not wasm.startswith(b"\0asm"):  # wasmtime would read WebAssembly text as well
        raise CannotCompile("the bytes are not a WebAssembly module")
    try:
        compiled = Compiled(engine, Module(engine.wasmtime, wasm))
        check_types(
            wasm, limits=_LIMITS
        )  # with others, wasmtime's C interface ends the process, as Envoy does
    except ContentRejected as error:
        raise CannotCompile(str(error)) from error
    except WasmtimeError as error:
        reason = shown(str(error).rstrip().splitlines()[-1].strip(), most=300)
        raise CannotCompile(f"the engine cannot compile the module: {reason}") from error
    return compiled


def deserialize(engine: Engine, data: bytes) -> Compiled:
    """The module that `Compiled.serialize` wrote. Raises CannotLoad for bytes of another engine.

    The bytes are executed: `data` must come from a place on this machine to which only this user may write.
    """
    from wasmtime import Module  # noqa: PLC0415

    return _load(engine, Module.deserialize, data)


def load_file(engine: Engine, path: str) -> Compiled:
    """As `deserialize`, of a file that does not change while the module is used: its pages are mapped, not copied."""
    from wasmtime import Module  # noqa: PLC0415

    return _load(engine, Module.deserialize_file, path)


def _load(engine: Engine, load: Callable[[Any, _T], Any], source: _T) -> Compiled:
    from wasmtime import WasmtimeError  # noqa: PLC0415

    try:
        return Compiled(engine, load(engine.wasmtime, source))
    except WasmtimeError as error:
        raise CannotLoad(
            f"the compiled module cannot be loaded: {shown(str(error), most=300)}"
        ) from error
