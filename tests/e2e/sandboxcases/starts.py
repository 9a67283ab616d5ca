"""Modules that start in Envoy or do not, the messages for those that do not, and the comparison of the messages.

`CRASHES` are modules that crash Envoy. `LATER` are modules that Envoy loads without an error, but with which every request gets 503.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from autowasm.envoyversion import envoy_version
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.verdict import Outcome, judge
from tests.parts import comparison, filters, wat
from tests.parts.filteringenvoy import plugin_of
from tests.parts.loading import envoy_failure

_ASSETS = Path(__file__).parents[2] / "assets" / "wat"
_FILTER = """
(memory (export "memory") 1 {maximum}) (func (export "proxy_abi_version_{abi}"))
(func (export "malloc") (param i32) (result i32) (i32.const 1024))
"""


@dataclass(frozen=True)
class Start:
    """A module with a plugin. `says` are parts of Envoy's message, `we_say` of the verdict's message."""

    module: Callable[[], bytes]
    plugin: Plugin = field(default_factory=Plugin)
    says: tuple[str, ...] = ()
    we_say: tuple[str, ...] = ()

    async def compare(self, version: str, directory: Path) -> None:
        """Raises AssertionError unless the sandbox and an Envoy of this version agree. Writes to `directory`."""
        module = self.module()
        config = plugin_of(self.plugin, directory / "module.wasm")
        said = await envoy_failure(version, module, directory, plugin=config)
        verdict = judge(
            comparison.compiled(module),
            self.plugin,
            envoy=envoy_version(version),
            smoke_request=False,
        )
        assert bool(said) == (verdict.outcome is Outcome.REFUSED), (said, verdict)
        assert verdict.outcome is not Outcome.DOUBTFUL
        for part in self.says:
            assert part in said
        for part in self.we_say:
            assert part in verdict.message


def text(body: str, *, imports: str = "", abi: str = "0_2_1", maximum: str = "") -> bytes:
    """A filter with these imports and functions."""
    return wat.compile_text(f"(module {imports}{_FILTER.format(abi=abi, maximum=maximum)}{body})")


def _text(body: str, says: str = "", we_say: str = "", **fields: str) -> Start:
    return Start(
        partial(text, body, **fields),
        says=(says,) if says else (),
        we_say=(we_say,) if we_say else (),
    )


def _built(name: str, toolchain: str, **plugin: object) -> Start:
    return Start(
        lambda: filters.build(name, toolchain=toolchain).read_bytes(),
        Plugin(root_id=name, **plugin),  # type: ignore[arg-type]
    )


_CREATE = '(func (export "proxy_on_context_create") (param i32 i32) {})'
_VM_START = '(func (export "proxy_on_vm_start") (param i32 i32) (result i32) {})'
_CONFIGURE = '(func (export "proxy_on_configure") (param i32 i32) (result i32) {})'
_EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
_TICK = '(import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))'
_YIELD = '(import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))'
_LOG = '(import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))'
_ENVIRON = (
    '(import "wasi_snapshot_preview1" "environ_sizes_get" (func $e (param i32 i32) (result i32)))'
)
_BUFFER = '(import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))'
_GET_SIZE = (
    "(drop (call $buffer (i32.const 7) (i32.const 0) (i32.const 9) (i32.const 0) (i32.const 4)))"
)

CASES: Mapping[str, Start] = {
    "nothing": _text(""),
    "abi-0.1.0": _text("", abi="0_1_0"),
    "abi-0.2.0": _text("", abi="0_2_0"),
    "abi-0.3.0": _text(
        "", "unknown Proxy-Wasm ABI version", "exports no proxy_abi_version", abi="0_3_0"
    ),
    "vm-start-false": _text(
        _VM_START.format("(i32.const 0)"), "Failed to start", "refuses to start"
    ),
    "vm-start-minus-one": _text(_VM_START.format("(i32.const -1)")),
    "vm-start-trap": _text(
        _VM_START.format("(unreachable)"), "proxy_on_vm_start failed", "unreachable"
    ),
    "configure-false": _text(
        _CONFIGURE.format("(i32.const 0)"), "Failed to configure", "its configuration"
    ),
    "configure-trap": _text(
        _CONFIGURE.format("(i32.div_u (i32.const 1) (i32.const 0))"),
        "divide by zero",
        "divided by zero",
    ),
    "configure-out-of-bounds": _text(
        _CONFIGURE.format("(i32.load (i32.const 65536))"), "out of bounds", "out of bounds"
    ),
    "configure-throws": _text(
        "(tag $t)" + _CONFIGURE.format("(throw $t)"), "proxy_on_configure failed", "exception"
    ),
    "start-trap": _text('(func (export "_start") (unreachable))', "_start failed", "unreachable"),
    "initialize-trap": _text('(func (export "_initialize") (unreachable))', "_initialize failed"),
    "main-trap": _text(
        '(func (export "_initialize")) (func (export "main") (param i32 i32) (result i32) (unreachable))',
        "main failed",
    ),
    "main-void-trap": Start(
        partial(
            text,
            '(func (export "_initialize")) (func (export "__main_void") (result i32) (unreachable))',
        ),
    ),
    "start-unused": _text('(func (export "_initialize")) (func (export "_start") (unreachable))'),
    "start-exits": _text(
        '(func (export "_start") (call $exit (i32.const 0)))',
        "restricted_callback",
        "forbids",
        imports=_EXIT,
    ),
    "start-ticks": _text(
        '(func (export "_start") (drop (call $tick (i32.const 1))))',
        "restricted_callback",
        "forbids",
        imports=_TICK,
    ),
    "start-logs": _text(
        '(func (export "_start") (drop (call $log (i32.const 2) (i32.const 0) (i32.const 4))))',
        imports=_LOG,
    ),
    "start-reads-environment": _text(
        '(func (export "_start") (drop (call $e (i32.const 0) (i32.const 4))))', imports=_ENVIRON
    ),
    "allocator-ticks": _text(
        '(func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 0))'
        + _CONFIGURE.format(f"{_GET_SIZE} (i32.const 1)"),
        imports=_BUFFER,
    ),
    "memory-grows": _text(
        _CONFIGURE.format("(i32.ne (memory.grow (i32.const 100)) (i32.const -1))")
    ),
    "memory-to-its-limit": _text(
        _CONFIGURE.format("(i32.ne (memory.grow (i32.const 16383)) (i32.const -1))")
    ),
    "memory-beyond-the-limit": _text(
        _CONFIGURE.format("(i32.ne (memory.grow (i32.const 16384)) (i32.const -1))"),
        "Failed to configure",
    ),
    "memory-4-gib": _text(
        _CONFIGURE.format("(i32.ne (memory.grow (i32.const 65535)) (i32.const -1))"),
        "Failed to configure",
    ),
    "start-section-trap": _text(
        "(func $f (unreachable)) (start $f)", "Failed to create new Wasm instance", "(start)"
    ),
    "start-section": _text("(func $f) (start $f)"),
    "start-section-yields": _text("(func $f (drop (call $yield))) (start $f)", imports=_YIELD),
    "outside-memory": _text(
        _CONFIGURE.format(
            "(i32.eq (call $log (i32.const 2) (i32.const 65536) (i32.const 1)) (i32.const 6))"
        ),
        imports=_LOG,
    ),
    **{
        path.stem: Start(partial(wat.compile_file, path))
        for path in sorted(_ASSETS.glob("*.wat"))
        if path.stem != "no_memory_export"  # crashes Envoy
    },
    **{
        f"{name}-{toolchain}": _built(name, toolchain, configuration=b"{}")
        for name, toolchain in filters.every()
        if toolchain != "go"  # all of them start: `toolchains.py` has them
    },
    "refused-c": _built("refuse-config", "c", configuration=b"please refuse"),
    "refused-assemblyscript": _built(
        "refuse-config", "assemblyscript", configuration=b"please refuse"
    ),
    "assemblyscript-with-another-root-id": Start(
        lambda: filters.build("echo", toolchain="assemblyscript").read_bytes(),
        Plugin(root_id="zzz"),
    ),
    "assemblyscript-without-configuration": _built("echo", "assemblyscript"),
}

OF_GO: Mapping[str, Start] = {
    "refused-go": _built("refuse-config", "go", configuration=b"please refuse"),
}
"""Separate from `CASES`, because compiling one takes seconds."""

CRASHES: Mapping[str, Start] = {
    "start-section-logs": _text(
        "(func $f (drop (call $log (i32.const 2) (i32.const 0) (i32.const 4)))) (start $f)",
        imports=_LOG,
    ),
    "start-section-exits": _text("(func $f (call $exit (i32.const 0))) (start $f)", imports=_EXIT),
    "grpc-without-target": _text(
        _CONFIGURE.format(f"(call $grpc {'(i32.const 0) ' * 12})"),
        imports=f'(import "env" "proxy_grpc_call" (func $grpc (param {"i32 " * 12}) (result i32)))',
    ),
    "no_memory_export": Start(partial(wat.compile_file, _ASSETS / "no_memory_export.wat")),
}

LATER: Mapping[str, Start] = {
    "context-create-trap": _text(_CREATE.format("(unreachable)")),
}
