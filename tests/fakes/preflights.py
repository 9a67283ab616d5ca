"""A Preflight with its fork server, in a directory, and filters in WebAssembly text for it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from autowasm.digest import Sha256Hex
from autowasm.limits import MIB, PreflightLimits
from autowasm.net.pools import Pools
from autowasm.preflight.cache import CodeCache
from autowasm.preflight.processes import ForkServer
from autowasm.preflight.runner import Preflight
from autowasm.preflight.verdicts import Unknown
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.verdict import Verdict
from autowasm.telemetry.metrics import Metrics
from tests.fakes.forkserver import alive, children_of, family_of, until

REAL = "autowasm.preflight.child"
LYING = "tests.fakes.lyingchildren"


class Judge:
    """A Preflight, with short names."""

    def __init__(
        self, preflight: Preflight, *, server: ForkServer, directory: Path, metrics: Metrics
    ) -> None:
        self.preflight = preflight
        self.server = server
        self.metrics = metrics
        self.code = directory / "code"
        self._modules = directory / "modules"
        self._modules.mkdir(exist_ok=True)

    async def __call__(
        self, module: bytes, configuration: bytes | None = None, *, namespace: str = "a"
    ) -> Verdict | Unknown:
        """The verdict on `module`."""
        path, sha256 = self.store(module)
        plugin = Plugin(configuration=configuration)
        return await self.preflight.judge(
            namespace=namespace, module=path, sha256=sha256, plugin=plugin
        )

    def store(self, module: bytes) -> tuple[Path, Sha256Hex]:
        """A file with these bytes, and its digest."""
        sha256 = Sha256Hex(hashlib.sha256(module).hexdigest())
        path = self._modules / sha256
        if not path.exists():
            path.write_bytes(module)
        return path, sha256

    def judgements(self, outcome: str) -> float:
        """The number of runs with this verdict."""
        return float(self.metrics.preflight_judgements.labels(outcome)._value.get())

    def failures(self, reason: str) -> float:
        """The number of runs without a verdict for this reason."""
        return float(self.metrics.preflight_failures.labels(reason)._value.get())

    def runs(self, work: str) -> float:
        """The number of children that did this work."""
        samples = self.metrics.preflight_seconds.labels(work)._child_samples()
        return next(sample.value for sample in samples if sample.name == "_count")


@asynccontextmanager
async def running(
    directory: Path,
    metrics: Metrics,
    *,
    limits: PreflightLimits | None = None,
    module: str = REAL,
    budget: int = 64 * MIB,
) -> AsyncIterator[Judge]:
    """Everything that a pre-flight needs. No process may be left at the end."""
    limits = limits or PreflightLimits()
    server = ForkServer(limits, metrics=metrics, module=module)
    with Pools() as pools:
        async with asyncio.TaskGroup() as tasks:
            preflight = Preflight(
                server=server,
                cache=CodeCache(directory / "code", budget=budget, pools=pools, metrics=metrics),
                limits=limits,
                pools=pools,
                metrics=metrics,
                tasks=tasks,
            )
            owner = tasks.create_task(preflight.run())
            try:
                yield Judge(preflight, server=server, directory=directory, metrics=metrics)
                await until(lambda: not children_of(server.pid))
                family = await family_of(server)
            finally:
                owner.cancel()
    await until(lambda: not any(alive(pid) for pid in family))


def filter_text(
    *, configure: str = "i32.const 1", request: str = "i32.const 0", more: str = "", pages: int = 1
) -> str:
    """A filter whose `proxy_on_configure` and `proxy_on_request_headers` are these instructions.

    Local 1 of the former is the size of the configuration. `$log` logs; the module has a table and a memory.
    """
    return f"""
    (module
      (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
      (memory (export "memory") {pages})
      (data (i32.const 16) "says the module")
      (table $t 1 funcref)
      (func (export "proxy_abi_version_0_2_1"))
      (func (export "malloc") (param i32) (result i32) i32.const 1024)
      (func (export "proxy_on_configure") (param i32 i32) (result i32) (local i32)
        {configure})
      (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        {request})
      {more})
    """
