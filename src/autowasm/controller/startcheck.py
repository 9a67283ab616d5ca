"""StartCheck: decides whether a module starts with its configuration, before an EnvoyFilter names it (ADR 37).

`preflight/` runs the module in a child process, outside the reconcile path; a finished run queues the key again. Invariants: only
a new combination of module, configuration, environment and root id is judged, so a restart, a failover or an upgrade does not
judge a published module; a filter in place is never touched; only a refusal of the module itself, and in mode `strict` also an
unknown result, blocks its publication; the status holds the last verdict, so a new leader does not repeat it.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import structlog
from msgspec import UNSET, UnsetType

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api.status import Condition, ConditionType, Preflight
from autowasm.api.v1alpha1 import PREFLIGHT_ANNOTATION, AutoWasm
from autowasm.controller.reconcilecontext import ReconcileContext
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError, SpecError
from autowasm.kube.resources import ObjectKey
from autowasm.preflight.verdicts import Unknown, described, plugin_of
from autowasm.reasons import Reason
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.verdict import Verdict
from autowasm.settings import PreflightMode
from autowasm.text import shown

_log = structlog.get_logger(__name__)

_RETRY: Final = 30.0
"""Seconds until a module without a verdict is judged again, in mode `strict`."""
_COMBINATION: Final = 16
"""Hexadecimal digits of a key that identify the combination that was judged. The others cover everything else that a verdict depends on."""
_STATUSES: Final = frozenset({"True", "False", "Unknown"})
_MESSAGE: Final = 32_768
"""Characters, as in the CRD."""


class StartJudge(Protocol):
    """`preflight.runner.Preflight`."""

    async def judge(
        self, *, namespace: str, module: Path, sha256: Sha256Hex, plugin: Plugin
    ) -> Verdict | Unknown:
        """The verdict on the stored module with this configuration."""

    def known(self, sha256: Sha256Hex, plugin: Plugin) -> Verdict | Unknown | None:
        """The verdict, if it is in memory."""

    def key(self, sha256: Sha256Hex, plugin: Plugin) -> str:
        """Everything that the verdict depends on, as a short text."""


@dataclass(frozen=True, slots=True)
class StartPending:
    """The module has been judged for `seconds` so far. The end queues the key."""

    seconds: float


@dataclass(frozen=True, slots=True)
class StartDecision:
    """`error`: why the module must not be published. `condition` and `preflight` are written to the status; None and UNSET: nothing to write."""

    condition: Condition | None = None
    preflight: Preflight | UnsetType = UNSET
    error: AutoWasmError | None = None
    retry_in: float | None = None


def mode_of(
    autowasm: AutoWasm, operators: Callable[[str], tuple[PreflightMode, bool]]
) -> PreflightMode:
    """The mode for this object. `operators`: the mode of the namespace, and whether an annotation may weaken it.

    Raises SpecError for an annotation that is invalid or weaker than the operator allows.
    """
    mode, may_weaken = operators(autowasm.metadata.namespace)
    text = autowasm.metadata.annotations.get(PREFLIGHT_ANNOTATION)
    if text is None:
        return mode
    field = f"metadata.annotations[{PREFLIGHT_ANNOTATION}]"
    try:
        requested = PreflightMode(text)
    except ValueError as error:
        names = ", ".join(one.value for one in PreflightMode)
        raise SpecError(field, f"{shown(text)!r} is not one of {names}") from error
    if requested.strength < mode.strength and not may_weaken:
        raise SpecError(
            field,
            f"{requested.value} is weaker than the operator's {mode.value}; remove the annotation, or ask the operator of "
            "wasmer to allow it",
            reason=Reason.POLICY_DENIED,
        )
    return requested


def _is_in_place(live: Mapping[str, Any] | None, wanted: Plugin, sha256: Sha256Hex) -> bool:
    """Whether everything that affects the module's start is the same in `live`, even if, for example, its ports differ."""
    if live is None or envoyfilters.digests_of(live) != (sha256,):
        return False
    try:
        plugin = plugin_of(live)
    except (KeyError, TypeError, AttributeError):  # a manual edit
        return False
    return _deciding(plugin) == _deciding(wanted)


def _deciding(plugin: Plugin) -> tuple[bytes | None, dict[str, str], str]:
    """The parts of an EnvoyFilter that affect the module's start, besides the module."""
    return plugin.configuration, dict(plugin.environment), plugin.root_id


def _combination(sha256: Sha256Hex, plugin: Plugin) -> str:
    text = msgspec.json.encode((sha256, _deciding(plugin)), order="deterministic")
    return hashlib.sha256(text).hexdigest()[:_COMBINATION]


def _usable(preflight: Preflight | UnsetType) -> Preflight | UnsetType:
    """UNSET for a verdict that is not a valid condition: another client wrote it."""
    if preflight is UNSET:
        return UNSET
    is_usable = (
        preflight.status in _STATUSES and preflight.reason and len(preflight.message) <= _MESSAGE
    )
    return preflight if is_usable else UNSET


@dataclass(slots=True, eq=False)
class _Job:
    key: str
    begun: float
    task: asyncio.Task[None] | None = None
    result: Verdict | Unknown | None = None
    retry_at: float | None = None


class StartCheck:
    """One per process. Calls `on_change` with the object's key when its module was judged."""

    def __init__(
        self,
        judge: StartJudge,
        *,
        operators: Callable[[str], tuple[PreflightMode, bool]],
        module_path: Callable[[Sha256Hex], Path],
        tasks: asyncio.TaskGroup,
        on_change: Callable[[ObjectKey], None],
    ) -> None:
        """`operators`: see `mode_of`. `module_path`: where a stored module is."""
        self._judge = judge
        self._operators = operators
        self._module_path = module_path
        self._tasks = tasks
        self._on_change = on_change
        self._jobs: dict[ObjectKey, _Job] = {}

    def check(self, autowasm: AutoWasm) -> None:
        """Raises SpecError for an annotation that `mode_of` refuses."""
        mode_of(autowasm, self._operators)

    def decide(
        self,
        context: ReconcileContext,
        autowasm: AutoWasm,
        sha256: Sha256Hex,
        *,
        wanted: Mapping[str, Any],
        live: Mapping[str, Any] | None,
    ) -> StartDecision | StartPending:
        """Whether `wanted` may replace `live`, the object's EnvoyFilter in place."""
        mode = mode_of(autowasm, self._operators)
        if mode is PreflightMode.OFF:
            self.forget(context.key)
            return StartDecision()
        plugin = plugin_of(wanted)
        last = _usable(context.previous.preflight)
        is_in_place = _is_in_place(live, plugin, sha256)
        combination = _combination(sha256, plugin)
        # Also a verdict of another version of wasmer, or a verdict for another failStrategy.
        if is_in_place and (last is UNSET or last.key.startswith(combination)):
            return self._unchanged(context, last)
        key = combination + self._judge.key(sha256, plugin)
        if is_in_place:  # the status has the verdict on another, refused combination
            mode = PreflightMode.WARN
        elif last is not UNSET and last.key == key:
            return self._of_status(last, autowasm, mode)
        job = self._jobs.get(context.key)
        now = asyncio.get_running_loop().time()
        if job is None or job.key != key or (job.retry_at is not None and now >= job.retry_at):
            # Another object has the same module and configuration: no second pass of the reconciler.
            if (known := self._judge.known(sha256, plugin)) is not None:
                self.forget(context.key)
                return self._of_result(known, key, plugin, autowasm, mode)
            job = self._begin(context.key, key, sha256, plugin)
        if job.result is None:
            return StartDecision(None, last) if is_in_place else StartPending(now - job.begun)
        retry_in = max(job.retry_at - now, 0.0) if job.retry_at is not None else _RETRY
        return self._of_result(job.result, job.key, plugin, autowasm, mode, retry_in=retry_in)

    def _unchanged(self, context: ReconcileContext, last: Preflight | UnsetType) -> StartDecision:
        """The decision that keeps the status's verdict on the combination in place."""
        self.forget(context.key)
        return StartDecision(context.previous.condition(ConditionType.STARTS), last)

    def published(self, key: ObjectKey) -> None:
        """The module was published. A run that only reports on it continues."""
        job = self._jobs.get(key)
        if job is not None and job.task is None:
            del self._jobs[key]

    def forget(self, key: ObjectKey) -> None:
        """The module is no longer wanted."""
        job = self._jobs.pop(key, None)
        if job is not None and job.task is not None:
            job.task.cancel()

    def _begin(self, key: ObjectKey, job_key: str, sha256: Sha256Hex, plugin: Plugin) -> _Job:
        self.forget(key)
        job = self._jobs[key] = _Job(job_key, asyncio.get_running_loop().time())
        job.task = self._tasks.create_task(
            self._run(key, job, sha256, plugin), name=f"pre-flight {key}"
        )
        return job

    async def _run(self, key: ObjectKey, job: _Job, sha256: Sha256Hex, plugin: Plugin) -> None:
        try:
            job.result = await self._judge.judge(
                namespace=key.namespace,
                module=self._module_path(sha256),
                sha256=sha256,
                plugin=plugin,
            )
        except Exception:  # supervised edge: a bug is not the module's fault
            _log.exception("pre-flight failed unexpectedly", key=str(key), digest=sha256)
            job.result = Unknown.internal_error()
        if isinstance(job.result, Unknown):
            job.retry_at = asyncio.get_running_loop().time() + _RETRY
        job.task = None
        self._on_change(key)

    def _of_result(
        self,
        result: Verdict | Unknown,
        key: str,
        plugin: Plugin,
        autowasm: AutoWasm,
        mode: PreflightMode,
        *,
        retry_in: float = _RETRY,
    ) -> StartDecision:
        """`retry_in`: seconds until the next run, if the result is Unknown."""
        if isinstance(result, Unknown):
            message = f"no verdict ({result.reason}): {result.message}"
            condition = _condition("Unknown", Reason.PREFLIGHT_UNAVAILABLE, message, autowasm)
            if mode is not PreflightMode.STRICT:
                return StartDecision(condition)
            error = AutoWasmError(
                f"{message}; mode strict publishes only modules with a verdict",
                reason=Reason.PREFLIGHT_UNAVAILABLE,
            )
            return StartDecision(condition, error=error, retry_in=retry_in)
        status, reason, message = described(result, plugin)
        preflight = Preflight(key=key, status=status, reason=reason, message=message)
        return self._of_status(preflight, autowasm, mode)

    @staticmethod
    def _of_status(preflight: Preflight, autowasm: AutoWasm, mode: PreflightMode) -> StartDecision:
        condition = _condition(preflight.status, preflight.reason, preflight.message, autowasm)
        refuses = {PreflightMode.ENFORCE: {"False"}, PreflightMode.STRICT: {"False", "Unknown"}}
        if preflight.status not in refuses.get(mode, set()):
            return StartDecision(condition, preflight)
        known = {one.value: one for one in Reason}
        reason = known.get(
            preflight.reason, Reason.START_FAILED
        )  # another version may have other reasons
        return StartDecision(condition, preflight, AutoWasmError(preflight.message, reason=reason))


def _condition(status: str, reason: str, message: str, autowasm: AutoWasm) -> Condition:
    return Condition(
        type=ConditionType.STARTS.value,
        status=status,
        reason=reason,
        message=message,
        observed_generation=autowasm.metadata.generation,
    )
