"""The host of one module: its contexts, calls into it, and the state that host functions use.

Invariants: a call into the module ends in a result or marks the host as failed, as Envoy marks a virtual machine; after a
failure no callback reaches the module; effects on the stream that a module requests (continue, local reply) happen after the call.

Sources: proxy-wasm-cpp-host src/wasm.cc, src/context.cc (`CHECK_FAIL`, `DeferAfterCallActions`), include/proxy-wasm/wasm.h
`allocMemory`, `copyToPointerSize`, include/proxy-wasm/wasm_vm.h `SaveRestoreContext`, `isHostFunctionAllowed`.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Flag, auto
from itertools import count
from typing import Final

from autowasm.envoyversion import EnvoyVersion
from autowasm.sandbox.clusteranswers import Callout, Clusters
from autowasm.sandbox.contexts import Context
from autowasm.sandbox.engine import Compiled
from autowasm.sandbox.errors import FailureKind, ModuleFailed
from autowasm.sandbox.instance import HostCallback, Imported, Instance
from autowasm.sandbox.plugin import Plugin, SandboxLimits
from autowasm.sandbox.properties import Value
from autowasm.sandbox.protocol import Errno, LogLevel, Result
from autowasm.sandbox.state import START_NANOSECONDS, Clock, Ledger, Log, Metrics, Shared
from autowasm.text import shown
from autowasm.wasm import abi


class Phase(Flag):
    """The phases in which a host function may be called. In any other phase Envoy ends the module ("restricted_callback")."""

    INSTANTIATE = auto()
    """During the start function of the WebAssembly module (`(start)`). There is no context yet: Envoy crashes in functions that
    need one, and all that use memory do."""
    START = auto()
    """During `_initialize`, `main`, `__main_void` and `_start`."""
    ALLOCATE = auto()
    """During `malloc` or `proxy_on_memory_allocate`, which the host calls within another host function."""
    RUN = auto()
    """In every callback."""


ANY: Final = Phase.START | Phase.ALLOCATE | Phase.RUN
STARTING: Final = Phase.START | Phase.RUN
ALONE: Final = Phase.INSTANTIATE
"""In addition to other phases: for functions that need no context, or need one only for some arguments."""


@dataclass(frozen=True, slots=True)
class Call:
    """One row of the specification: the function, the meaning of its result (None if it has no result), and the phases in which it may be called.

    Name, type and ABI versions are in `wasm/abi.py` `HOST_FUNCTIONS`.
    """

    function: Callable[..., int | None]
    result: type[Result] | type[Errno] | type[int] | None
    phases: Phase


@dataclass(frozen=True, slots=True)
class Environment:
    """The module's environment, from the caller of the sandbox. Equal environments give equal runs."""

    envoy: EnvoyVersion
    clusters: Clusters
    shared: Shared
    seed: int = 0
    started_at: int = START_NANOSECONDS
    """When the virtual machine starts, in nanoseconds since 1970."""
    log_level: LogLevel = LogLevel.INFO
    """The result of `get_log_level`. Lines of all levels are kept."""
    extra_imports: frozenset[str] = frozenset()
    """Functions of extensions (`module.name`) that the user's Envoys offer but the sandbox does not."""
    properties: Mapping[str, Value] = field(default_factory=dict)
    """Properties outside streams, such as `node`."""


_UNCHECKED: Final = "it calls {}, an extension of Envoy that the sandbox does not have"
_FORBIDDEN: Final = "it calls {} while {}, which Envoy forbids"
_DURING: Final = {
    Phase.START: "it starts",
    Phase.ALLOCATE: "it allocates memory for the host",
}
_LATER_AT_START: Final = frozenset({"env.emscripten_notify_memory_growth"}) | {
    f"{module}.poll_oneoff" for module in abi.WASI_MODULES
}
"""Allowed at the start by Envoy 1.40, not by 1.36."""

NEWER_LIBRARY: Final = EnvoyVersion(1, 37)
"""Envoy 1.36.4 has an older proxy-wasm-cpp-host than 1.40.0; where they differ, releases in between count as the newer one."""


class Host:
    """One virtual machine. `calls` is the table of host functions. Nothing runs before `instantiate`."""

    def __init__(
        self,
        compiled: Compiled,
        plugin: Plugin,
        *,
        calls: Mapping[str, Call],
        limits: SandboxLimits,
        environment: Environment,
        log: Log,
    ) -> None:
        self.plugin = plugin
        self.limits = limits
        self.environment = environment
        self.log = log
        self.ledger = Ledger(limits)
        self.metrics = Metrics(self.ledger)
        self.clock = Clock(environment.started_at)
        self.random = random.Random(environment.seed)  # noqa: S311  # the same numbers in every run are the purpose
        self.failure: ModuleFailed | None = None
        self.doubts: dict[str, None] = {}
        """Requests of the module that only the user's Envoy can answer, in order."""
        self.callouts: list[Callout] = []
        self.declared: set[bytes] = set()
        """Properties that the module declared."""
        self.contexts: dict[int, Context] = {}
        self.vm_context = Context(0, 0, plugin)
        self.pending_done: Context | None = None
        """The root context that was asked to end and is not done yet."""
        self.configuring = False
        self.stop_iteration = False
        self._calls = calls
        self._phase = Phase.INSTANTIATE
        self._current = self.vm_context
        self._effective = 0
        self._next_context = 1
        self._actions: deque[Callable[[], None]] = deque()
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = count()
        self._callout_ids = [0, 1, 2]
        self._exports: frozenset[str] = frozenset()
        self.abi = ""
        self.allocator = ""
        self.instance = Instance(compiled, limits=limits, fuel=limits.start_fuel)

    def instantiate(self, compiled: Compiled) -> None:
        """Link and instantiate the module. Raises ModuleFailed."""
        self.abi = _abi_version(compiled)
        self.instance.instantiate(compiled.module, self._resolve)
        self._exports = self._checked_exports(compiled)
        self._phase = Phase.RUN

    # --- linking

    def _resolve(self, imported: Imported) -> HostCallback:
        """The host function for an import. Raises ModuleFailed (`LINK`), as Envoy's `V8::link` does."""
        known = abi.HOST_FUNCTIONS.get(imported.name)
        offered = known and self.abi in known.abis and known.since <= self.environment.envoy
        if known is None or not offered:
            if imported.name not in self.environment.extra_imports:
                raise ModuleFailed(
                    FailureKind.LINK,
                    f"the module imports {shown(imported.name)}, which Envoy {self.environment.envoy} does not offer",
                )
            return self._unknown(imported.name)
        if imported.signature != known.signature:
            raise ModuleFailed(
                FailureKind.LINK,
                f"the module imports {imported.name} as {imported.signature}, but Envoy offers it as {known.signature}",
            )
        return self._guarded(imported.name, self._calls[imported.name])

    def _unknown(self, name: str) -> HostCallback:
        def fail(_arguments: tuple[int, ...]) -> int:
            raise ModuleFailed(FailureKind.UNSUPPORTED, _UNCHECKED.format(shown(name)))

        return fail

    def _guarded(self, name: str, call: Call) -> HostCallback:
        function, phases = call.function, call.phases
        if name in _LATER_AT_START and self.environment.envoy < NEWER_LIBRARY:
            phases &= ~Phase.START
        cost = self.limits.call_fuel

        def run(arguments: tuple[int, ...]) -> int | None:
            if not self._phase & phases:
                if self._phase is Phase.INSTANTIATE:
                    raise _crash()
                raise ModuleFailed(
                    FailureKind.FORBIDDEN_CALL, _FORBIDDEN.format(name, _DURING[self._phase])
                )
            self.instance.charge(cost)
            return function(self, *arguments)

        return run

    def _checked_exports(self, compiled: Compiled) -> frozenset[str]:
        """The exports that Envoy calls. Raises ModuleFailed (`LINK`) if one has a wrong type, or if there is no allocator."""
        names = frozenset(each.name for each in compiled.module.exports)
        found = set()
        for name, wanted in abi.called_functions(self.abi, names).items():
            signature = self.instance.signature(name)
            if signature is None:
                continue
            if signature != wanted:
                raise ModuleFailed(
                    FailureKind.LINK,
                    f"the module exports {name} as {signature}, but Envoy calls it as {wanted}",
                )
            found.add(name)
        self.allocator = next((name for name in abi.ALLOCATORS if name in found), "")
        if not self.allocator:
            raise ModuleFailed(
                FailureKind.LINK,
                f"the module exports neither {' nor '.join(abi.ALLOCATORS)}, one of which Envoy needs",
            )
        return frozenset(found)

    def exports(self, name: str) -> bool:
        """Whether the module has this callback."""
        return name in self._exports

    # --- contexts

    @property
    def context(self) -> Context:
        """The context on which host functions act: the effective one, else that of the callback. Raises ModuleFailed if there is none."""
        self._need_context()
        return (
            self.contexts.get(self._effective, self._current) if self._effective else self._current
        )

    def _need_context(self) -> None:
        if self._phase is Phase.INSTANTIATE:
            raise _crash()

    def set_effective(self, identifier: int) -> bool:
        """Let host functions act on another context until the callback returns; False for an unknown one."""
        found = identifier in self.contexts or identifier == 0
        if found:
            self._effective = identifier
        return found

    def root_of(self, context: Context) -> Context:
        """The root context of a context; the VM context is its own root."""
        return self.contexts[context.parent] if context.parent else context

    def new_context(self, parent: int) -> Context:
        """A new context of the host, for which the module gets `proxy_on_context_create`. Raises ModuleFailed (`LIMIT`)."""
        if len(self.contexts) >= self.limits.contexts:
            raise ModuleFailed(
                FailureKind.LIMIT,
                f"{self.limits.contexts} contexts are open, the limit of the sandbox",
            )
        made = Context(self._next_context, parent, self.plugin)
        self.contexts[made.identifier] = made
        self._next_context += 1
        return made

    def drop_context(self, context: Context) -> None:
        """The context ends."""
        self.contexts.pop(context.identifier, None)

    # --- calls into the module

    @property
    def has_failed(self) -> bool:
        """Whether the module failed. It gets no more callbacks then."""
        return self.failure is not None

    def fail(self, failure: ModuleFailed) -> None:
        """Mark the host as failed; the first failure counts."""
        self.failure = self.failure or failure

    def run_start(self, name: str, *arguments: int) -> None:
        """Call a start function, in which few host functions are allowed."""
        self._phase = Phase.START
        self.invoke(self.vm_context, name, *arguments)
        self._phase = Phase.RUN

    def invoke(self, context: Context, name: str, *arguments: int) -> int:
        """Call a callback; 0 if it fails, as in Envoy. `finish` must then perform the actions that it requested."""
        saved = self._current, self._effective
        self._current, self._effective = context, 0
        try:
            self.instance.charge(self.limits.call_fuel)
            return self.instance.call(name, *arguments)
        except ModuleFailed as failure:
            failure.function = failure.function or name
            self.fail(failure)
            return 0
        finally:
            self._current, self._effective = saved

    def callback(self, context: Context, name: str, *arguments: int) -> int:
        """Call a callback if the module has it and has not failed, then perform the actions that it requested. 0 if there is no callback."""
        if self.has_failed or name not in self._exports:
            return 0
        result = self.invoke(context, name, *arguments)
        self.finish()
        return result

    def defer(self, action: Callable[[], None]) -> None:
        """Run an action after the current callback returns."""
        self._actions.append(action)

    def finish(self) -> None:
        """Perform the actions that the callback requested (`DeferAfterCallActions`)."""
        self.stop_iteration = False
        while self._actions:
            self._actions.popleft()()

    def end_root(self, root: Context) -> None:
        """Notify the root context that the plugin ends; it may answer that it is not done yet (`startShutdown`)."""
        if self.exports("proxy_on_done"):
            is_done = bool(self.callback(root, "proxy_on_done", root.identifier))
            if not is_done and not self.has_failed:
                self.pending_done = root
                return
        self._delete_root(root)

    def root_done(self) -> Result:
        """The root context is done (`proxy_done`)."""
        root, self.pending_done = self.pending_done, None
        if root is None:
            return Result.NOT_FOUND
        self.defer(lambda: self._delete_root(root))
        return Result.OK

    def _delete_root(self, root: Context) -> None:
        self.callback(root, "proxy_on_delete", root.identifier)
        self.drop_context(root)

    # --- memory

    def read(self, address: int, size: int) -> bytes | None:
        """Bytes of the module's memory; None if they are out of bounds."""
        self._need_context()
        return self.instance.read(address, size)

    def write(self, address: int, data: bytes) -> bool:
        """Write to the module's memory; False if the range is out of bounds."""
        self._need_context()
        return self.instance.write(address, data)

    def write_number(self, address: int, value: int, size: int = 4) -> bool:
        """Write an unsigned number of `size` bytes."""
        return self.write(address, value.to_bytes(size, "little"))

    def allocate(self, size: int) -> int | None:
        """Let the module allocate memory; None if it returns none."""
        saved = self._phase, self._current, self._effective
        self._phase, self._current, self._effective = Phase.ALLOCATE, self.vm_context, 0
        try:
            self.instance.charge(self.limits.call_fuel)
            address = self.instance.call(self.allocator, size)
        except ModuleFailed as failure:
            if failure.kind in (FailureKind.LIMIT, FailureKind.UNSUPPORTED):
                raise
            self.fail(failure)  # the callback continues, as in Envoy
            return None
        finally:
            _, self._current, self._effective = saved
            self._phase = (
                Phase.RUN
            )  # even within a start function: Envoy's `setRestrictedCallback(false)`
        if not address or address + size > self.instance.memory_bytes:
            return None
        return address

    def give(self, data: bytes, address_at: int, size_at: int) -> Result:
        """Pass `data` to the module: allocate, copy, and write its address and size (`copyToPointerSize`)."""
        address = 0
        if data:
            allocated = self.allocate(len(data))
            if allocated is None or not self.write(allocated, data):
                return Result.INVALID_MEMORY_ACCESS
            address = allocated
        if not self.write_number(address_at, address) or not self.write_number(size_at, len(data)):
            return Result.INVALID_MEMORY_ACCESS
        return Result.OK

    # --- time and events

    def next_callout_id(self, kind: int) -> int:
        """A new token; its two lowest bits are the kind of callout. Raises ModuleFailed (`LIMIT`)."""
        if len(self.callouts) >= self.limits.callouts:
            raise ModuleFailed(
                FailureKind.LIMIT,
                f"it makes more than {self.limits.callouts} callouts, the limit of the sandbox",
            )
        self._callout_ids[kind] += 4
        return self._callout_ids[kind]

    def schedule(self, seconds: float, event: Callable[[], None]) -> None:
        """Schedule an event after a delay."""
        due = self.clock.now + max(0, int(seconds * 1e9))
        heapq.heappush(self._events, (due, next(self._sequence), event))

    @property
    def has_events(self) -> bool:
        """Whether anything is scheduled. Timers do not count."""
        return bool(self._events)

    def run_until(self, is_over: Callable[[], bool], *, deadline: int, timers: bool = True) -> None:
        """Advance time and run events until `is_over`, a failure of the module, the last event, or `deadline`."""
        while not is_over() and not self.has_failed:
            timer = self.clock.next_timer() if timers else None
            event_due = self._events[0][0] if self._events else None
            if event_due is None and timer is None:
                return
            is_timer = timer is not None and (event_due is None or timer[0] < event_due)
            due = timer[0] if timer is not None and is_timer else event_due
            if due is None or due > deadline:
                self.clock.advance_to(deadline)
                return
            self.clock.advance_to(due)
            if timer is not None and is_timer:
                self._tick(timer[1])
            else:
                heapq.heappop(self._events)[2]()

    def _tick(self, identifier: int) -> None:
        context = self.contexts.get(identifier)
        if context is None or "proxy_on_tick" not in self._exports:
            self.clock.set_timer(identifier, 0)
            return

        def tick() -> None:
            self.callback(context, "proxy_on_tick", identifier)

        self.clock.fire(identifier, tick)


def _crash() -> ModuleFailed:
    return ModuleFailed(
        FailureKind.CRASH,
        "it calls a host function that needs a context before there is one, which crashes Envoy",
    )


def _abi_version(compiled: Compiled) -> str:
    """The first version that is exported (proxy-wasm-cpp-host src/bytecode_util.cc `getAbiVersion`)."""
    for export in compiled.module.exports:
        version = export.name.removeprefix(abi.ABI_PREFIX).replace("_", ".")
        if export.name.startswith(abi.ABI_PREFIX) and version in abi.ABIS:
            return str(version)
    raise ModuleFailed(
        FailureKind.LINK,
        f"the module exports no {abi.ABI_PREFIX}… that Envoy knows ({', '.join(abi.ABIS)})",
    )
