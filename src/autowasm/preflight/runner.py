"""Preflight: the verdict on a module with its configuration, from a child process.

Slots limit the concurrent children to one for each namespace and two in total, one of which may compile. Invariants: code of a module
runs only in a child that `isolation.py` restricted; a child that dies, hangs or cannot be started results in `Unknown`, never in a
refusal; equal requests share one run; the same module and request get the same verdict from memory; no limit is ever exceeded;
waiting namespaces take turns, so a namespace with a hundred requests delays another's request by at most one; a caller that waits for
a lock holds no slot meanwhile.
"""

import asyncio
import functools
import hashlib
import os
import signal
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import Gauge

from autowasm.artifacts.singleflight import SingleFlight
from autowasm.blobs.files import Blob, DamagedBlob, finish, open_verified
from autowasm.blobs.store import KeyedLock
from autowasm.digest import Sha256Hex
from autowasm.envoyversion import OLDEST_ENVOY, EnvoyVersion
from autowasm.limits import PreflightLimits
from autowasm.net.pools import Pools
from autowasm.preflight import messages
from autowasm.preflight.cache import ENGINE_VERSION, CodeCache
from autowasm.preflight.isolation import Enforced
from autowasm.preflight.messages import COMPILE, RUN, Answer, Ended, NoVerdictReason, Request
from autowasm.preflight.processes import ForkServer, Result
from autowasm.preflight.verdicts import NoVerdict, Unknown, VerdictKey, Verdicts
from autowasm.sandbox.plugin import FailurePolicy, Plugin, SandboxLimits
from autowasm.sandbox.verdict import Outcome, Verdict
from autowasm.telemetry.metrics import Metrics
from autowasm.text import shown
from autowasm.units import format_size


class Slots:
    """Grants slots. Use it on one event loop only. `running` and `waiting` are set to the numbers of callers."""

    def __init__(self, limits: PreflightLimits, *, running: Gauge, waiting: Gauge) -> None:
        self._limits = limits
        self._running_gauge = running
        self._waiting_gauge = waiting
        self._running: set[str] = set()
        """The namespaces that have a slot, or wait for a lock in between."""
        self._without: set[str] = set()
        """Namespaces in `_running` that have no slot at the moment."""
        self._back: deque[tuple[str, asyncio.Future[None]]] = deque()
        """Namespaces that have their lock and wait for a slot: they come before all that wait for their first slot."""
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._waiting_count = 0

    @asynccontextmanager
    async def place(self, namespace: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it. Raises NoVerdict if too many wait already."""
        await self._enter(namespace)
        try:
            yield
        finally:
            self._running.discard(namespace)
            self._grant()

    @asynccontextmanager
    async def turn(self, namespace: str, lock: asyncio.Lock) -> AsyncIterator[None]:
        """Within `place`: wait for `lock` without the slot, and hold both."""
        self._without.add(namespace)
        if lock.locked():
            self._grant()
        try:
            async with lock:
                await self._return(namespace)
                yield
        finally:
            self._without.discard(namespace)
            self._show()

    async def _return(self, namespace: str) -> None:
        if self._has_room() and not self._back:
            self._without.discard(namespace)
            self._show()
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._back.append((namespace, granted))
        await granted

    def _has_room(self) -> bool:
        return len(self._running) - len(self._without) < self._limits.total

    async def _enter(self, namespace: str) -> None:
        if self._fits(namespace) and namespace not in self._waiting:
            self._running.add(namespace)
            self._show()
            return
        if self._waiting_count >= self._limits.queued:
            raise NoVerdict(
                NoVerdictReason.TOO_MANY_REQUESTS,
                f"{self._waiting_count} modules wait for their pre-flight",
            )
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(namespace, deque()).append(granted)
        self._waiting_count += 1
        self._show()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._forget(namespace, granted)
            else:  # granted at the same moment
                self._running.discard(namespace)
                self._grant()
            raise

    def _fits(self, namespace: str) -> bool:
        return self._has_room() and namespace not in self._running

    def _forget(self, namespace: str, granted: asyncio.Future[None]) -> None:
        line = self._waiting.get(namespace)
        if line is None or granted not in line:
            return
        line.remove(granted)
        self._waiting_count -= 1
        if not line:
            del self._waiting[namespace]
        self._show()

    def _grant(self) -> None:
        while self._back and self._has_room():
            namespace, returning = self._back.popleft()
            if not returning.done():  # else cancelled
                self._without.discard(namespace)
                returning.set_result(None)
        for namespace in list(self._waiting):
            if not self._fits(namespace):
                continue
            line = self._waiting.pop(namespace)
            while line:
                granted = line.popleft()
                self._waiting_count -= 1
                if not granted.done():  # else cancelled; its caller has not run since
                    self._running.add(namespace)
                    granted.set_result(None)
                    break
            if line:
                self._waiting[namespace] = line  # now last
        self._show()

    def _show(self) -> None:
        self._running_gauge.set(len(self._running) - len(self._without))
        self._waiting_gauge.set(self._waiting_count + len(self._without))


_MAX_OUTPUT: Final = 300
"""Characters of a child's output in the message of an Unknown."""
_DOING: Final = {COMPILE: "compiled", RUN: "ran"}

_log = structlog.get_logger(__name__)


class Preflight:
    """Judges modules. `run` must run meanwhile; `tasks` owns the runs."""

    def __init__(
        self,
        *,
        server: ForkServer,
        cache: CodeCache,
        limits: PreflightLimits,
        pools: Pools,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
        envoy: EnvoyVersion = OLDEST_ENVOY,
        extra_imports: frozenset[str] = frozenset(),
    ) -> None:
        """`envoy` is the oldest release among the sidecars, `extra_imports` are its additional functions (`--allow-import`)."""
        self._server = server
        self._cache = cache
        self._limits = limits
        self._pools = pools
        self._envoy = envoy
        self._extra_imports = extra_imports
        self._metrics = metrics
        self._flights = SingleFlight(tasks)
        self._slots = Slots(
            limits, running=metrics.preflight_children, waiting=metrics.preflight_waiting
        )
        self._locks = KeyedLock()
        # Over all namespaces: compilations take most of the memory that the container's limit has to allow.
        self._compiling = asyncio.Lock()
        self._verdicts = Verdicts(limits)
        self._sandbox = SandboxLimits(
            start_fuel=limits.run_fuel,
            exchange_fuel=limits.run_fuel,
            log_bytes=limits.log_bytes,
            log_line_bytes=limits.log_line_bytes,
        )
        for reason in NoVerdictReason:  # created now: a series that begins at 1 shows no increase
            metrics.preflight_failures.labels(reason)
        self.enforced: Enforced | None = None
        """The isolation of the last child; None before the first."""

    async def run(self) -> None:
        """Keep the fork server running until cancelled."""
        await self._server.run()

    def key(self, sha256: Sha256Hex, plugin: Plugin) -> str:
        """Everything that a verdict depends on: module, plugin, bounds, and engine. Equal in all replicas of one version."""
        request = self._request(plugin)
        return hashlib.sha256(
            b"\0".join((sha256.encode(), ENGINE_VERSION.encode(), request))
        ).hexdigest()[:32]

    def known(self, sha256: Sha256Hex, plugin: Plugin) -> Verdict | Unknown | None:
        """The verdict, if it is in memory.

        A thousand objects with one module and configuration share one run. Only a good verdict is shared: a module may read its
        plugin's name.
        """
        _, key, shared = self._keys(sha256, plugin)
        return self._known(key, shared)

    def _known(self, key: VerdictKey, shared: VerdictKey) -> Verdict | Unknown | None:
        return self._verdicts.get(key) or self._verdicts.get(shared)

    def _keys(self, sha256: Sha256Hex, plugin: Plugin) -> tuple[bytes, VerdictKey, VerdictKey]:
        """The request, and its key alone and for all objects with this configuration. Encodes up to 1 MiB twice, so call it once."""
        request = self._request(plugin)
        return request, _key(sha256, request), _key(sha256, self._request(_anonymous(plugin)))

    def _request(self, plugin: Plugin) -> bytes:
        return Request(plugin, self._sandbox, self._envoy, self._extra_imports).to_json()

    async def judge(
        self, *, namespace: str, module: Path, sha256: Sha256Hex, plugin: Plugin
    ) -> Verdict | Unknown:
        """The verdict on the module in the file `module` with the configuration `plugin`, for an object of `namespace`.

        `module` is read only if the code of `sha256` is not cached. Waits for a slot without its own deadline.
        """
        request, key, shared = self._keys(sha256, plugin)
        if (known := self._known(key, shared)) is not None:
            return known
        work = functools.partial(self._judge, namespace, key, shared, module, request)
        try:
            return await self._flights.join(key, work, slot=lambda: self._slots.place(namespace))
        except NoVerdict as error:
            if error.unknown.reason is NoVerdictReason.TOO_MANY_REQUESTS:  # it never got a slot
                self._count_failure(error.unknown.reason)
            return error.unknown

    async def _judge(
        self, namespace: str, key: VerdictKey, shared: VerdictKey, module: Path, request: bytes
    ) -> Verdict:
        known = self._verdicts.get(shared)  # judged for another object while this one waited
        if isinstance(known, Verdict):
            return known
        try:
            self._require_small(request)
            verdict = await self._compile_and_run(namespace, key.sha256, module, request)
        except NoVerdict as error:
            self._count_failure(error.unknown.reason)
            if error.unknown.reason is NoVerdictReason.CANNOT_COMPILE:
                self._verdicts.put(key, error.unknown, size=len(error.unknown.message))
            raise
        except Exception:  # a bug: the caller logs it
            self._count_failure(NoVerdictReason.INTERNAL_ERROR)
            raise
        self._metrics.preflight_judgements.labels(verdict.outcome.value.lower()).inc()
        size = len(verdict.to_json())
        self._verdicts.put(key, verdict, size=size)
        if verdict.outcome is Outcome.STARTS:
            self._verdicts.put(shared, verdict, size=size)
        return verdict

    def _count_failure(self, reason: NoVerdictReason) -> None:
        self._metrics.preflight_failures.labels(reason).inc()
        self._metrics.preflight_judgements.labels("unknown").inc()

    def _require_small(self, request: bytes) -> None:
        most = self._limits.request_bytes
        if len(request) > most:
            raise NoVerdict(
                NoVerdictReason.TOO_LARGE,
                f"the configuration takes {len(request)} bytes, more than {most}",
            )

    async def _compile_and_run(
        self, namespace: str, sha256: Sha256Hex, module: Path, request: bytes
    ) -> Verdict:
        try:
            return await self._run(await self._code(namespace, sha256, module), request)
        except NoVerdict as error:
            if error.unknown.reason is not NoVerdictReason.CANNOT_LOAD:
                raise
        # The volume was moved to another node, whose processor may lack instructions that the code uses.
        await self._cache.remove(sha256)
        return await self._run(await self._code(namespace, sha256, module), request)

    async def _code(self, namespace: str, sha256: Sha256Hex, module: Path) -> Blob:
        """The compiled module; compiles it if it is not cached."""
        try:
            async with self._slots.turn(namespace, self._locks.of(sha256)):
                code = await self._cache.get(sha256)
                if code is not None:
                    return code
                async with self._slots.turn(namespace, self._compiling):
                    return await self._compile(sha256, module)
        except OSError as error:
            raise NoVerdict(
                NoVerdictReason.STORAGE_UNAVAILABLE,
                f"the directory of compiled modules: {error.strerror}",
            ) from error

    async def _compile(self, sha256: Sha256Hex, module: Path) -> Blob:
        source = await self._open_module(sha256, module)
        staged = await self._cache.stage()
        try:
            answer = await self._execute(
                COMPILE,
                (source.fd, staged.fd),
                seconds=self._limits.compile_seconds,
                resident=self._limits.compile_memory,
                file=self._limits.code_bytes,
            )
            if answer.compiled is None:
                raise NoVerdict(
                    NoVerdictReason.INVALID_ANSWER,
                    "the child that compiled the module sent an unexpected answer",
                )
            return await self._cache.commit(sha256, staged)
        finally:
            os.close(staged.fd)
            await self._cache.discard(staged)

    async def _open_module(self, sha256: Sha256Hex, module: Path) -> Blob:
        job = functools.partial(open_verified, module, sha256, known=None)
        try:
            fd, signature = await finish(
                self._pools.disk, job, abandoned=lambda opened: self._pools.closer.submit(opened[0])
            )
        except (DamagedBlob, OSError) as error:
            raise NoVerdict(
                NoVerdictReason.MODULE_UNAVAILABLE, f"the stored module cannot be read: {error}"
            ) from error
        return Blob.adopt(sha256, fd, signature, closer=self._pools.closer)

    async def _run(self, code: Blob, request: bytes) -> Verdict:
        answer = await self._execute(
            RUN,
            (code.fd,),
            request=request,
            seconds=self._limits.run_seconds,
            resident=self._limits.run_memory,
        )
        if answer.verdict is None:
            raise NoVerdict(
                NoVerdictReason.INVALID_ANSWER, "the child that ran the module gave no verdict"
            )
        return answer.verdict

    async def _execute(
        self,
        work: str,
        descriptors: tuple[int, ...],
        *,
        request: bytes | None = None,
        seconds: float,
        resident: int,
        file: int = 0,
    ) -> Answer:
        began = time.monotonic()
        result = await self._server.execute(
            work, descriptors, request=request, seconds=seconds, resident=resident, file=file
        )
        self._metrics.preflight_seconds.labels(work).observe(time.monotonic() - began)
        answer = answer_of(
            result, child=f"the child that {_DOING[work]} the module", seconds=seconds
        )
        if self.enforced is None and answer.enforced is not None:
            self.enforced = answer.enforced
            _log.info("modules run isolated", landlock=answer.enforced.landlock)
        return answer


def _key(sha256: Sha256Hex, request: bytes) -> VerdictKey:
    return VerdictKey(sha256, hashlib.sha256(request).digest(), ENGINE_VERSION)


def _anonymous(plugin: Plugin) -> Plugin:
    """The plugin without fields that differ between objects and hardly ever decide whether a module starts."""
    return replace(plugin, name="", vm_id="", failure_policy=FailurePolicy.CLOSED)


def answer_of(result: Result, *, child: str, seconds: float) -> Answer:
    """The answer of `child`. Raises NoVerdict unless it exited normally, with an answer that is not a problem."""
    ended = result.ended
    if ended.cause or ended.status:
        raise _failure(ended, child=child, seconds=seconds)
    if result.answer is None:
        raise NoVerdict(NoVerdictReason.INVALID_ANSWER, f"{child} gave no answer")
    try:
        answer = Answer.from_json(result.answer)
    except ValueError as error:
        raise NoVerdict(
            NoVerdictReason.INVALID_ANSWER, f"{child} gave an invalid answer"
        ) from error
    if answer.problem is not None:
        message = shown(answer.problem.message, most=_MAX_OUTPUT)
        raise NoVerdict(answer.problem.reason, f"{child}: {message}")
    return answer


def _failure(ended: Ended, *, child: str, seconds: float) -> NoVerdict:
    match ended.cause:
        case messages.DEADLINE:
            text = f"{child} was killed after {seconds:g} s"
            return NoVerdict(NoVerdictReason.DEADLINE_EXCEEDED, text)
        case messages.MEMORY:
            text = f"{child} was killed because it used {format_size(ended.memory)} of memory"
            return NoVerdict(NoVerdictReason.OUT_OF_MEMORY, text)
        case messages.NOT_FORKED:
            return NoVerdict(
                NoVerdictReason.NOT_STARTED, f"{child} could not be forked: {ended.stderr}"
            )
    if not os.WIFSIGNALED(ended.status):
        end = f"ended with status {os.waitstatus_to_exitcode(ended.status)}"
    elif os.WTERMSIG(ended.status) == signal.SIGXCPU:
        return NoVerdict(
            NoVerdictReason.DEADLINE_EXCEEDED,
            f"{child} used more than {seconds:g} s of processor time",
        )
    else:
        end = f"was killed by {signal.Signals(os.WTERMSIG(ended.status)).name}"
    said = f": {shown(ended.stderr.strip(), most=_MAX_OUTPUT)}" if ended.stderr.strip() else ""
    return NoVerdict(NoVerdictReason.CRASHED, f"{child} {end}{said}")
