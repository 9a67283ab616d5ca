"""The result of a pre-flight: a verdict, or Unknown; the verdicts in memory, by module and request; and the condition `Starts`.

Unknown means that there is no verdict because of wasmer, its machine or its limits. It is never the module's fault. The cache
also keeps that the engine cannot compile a module, which does not change either. Invariants: reasons are stable and bounded in
number, because they are metric labels and begin messages; verdicts are bounded in number and bytes; the least recently used is
dropped first; the plugin's bytes are those of the rendered EnvoyFilter, so a verdict applies to the plugin that sidecars get; the
controller's status and `wasmc` report the same verdict in the same words. Not on disk: records keep the verdicts that matter after a
restart.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from autowasm.api import envoyfilter as envoyfilters
from autowasm.digest import Sha256Hex
from autowasm.limits import PreflightLimits
from autowasm.preflight.messages import NoVerdictReason
from autowasm.reasons import Reason
from autowasm.sandbox.plugin import FailurePolicy, Plugin
from autowasm.sandbox.verdict import Doubt, Outcome, Verdict
from autowasm.sandbox.vm import StartPhase
from autowasm.text import shown


@dataclass(frozen=True, slots=True)
class Unknown:
    """`message` is one line for a status, and describes the cause."""

    reason: NoVerdictReason
    message: str

    @classmethod
    def internal_error(cls) -> Self:
        """A bug of wasmer. The log has the traceback."""
        return cls(NoVerdictReason.INTERNAL_ERROR, "a bug in wasmer; its log has the traceback")


class NoVerdict(Exception):
    """Carries an `Unknown` to `Preflight.judge`, which returns it."""

    def __init__(self, reason: NoVerdictReason, message: str) -> None:
        super().__init__(message)
        self.unknown = Unknown(reason, message)


class VerdictKey(NamedTuple):
    """Everything that a verdict depends on: `request` is the hash of plugin and limits, `engine` the version of the sandbox."""

    sha256: Sha256Hex
    request: bytes
    engine: str


class Verdicts:
    """A cache of verdicts."""

    def __init__(self, limits: PreflightLimits) -> None:
        self._limits = limits
        self._verdicts: OrderedDict[VerdictKey, tuple[Verdict | Unknown, int]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._verdicts)

    def get(self, key: VerdictKey) -> Verdict | Unknown | None:
        """The verdict, if it is cached."""
        if key not in self._verdicts:
            return None
        self._verdicts.move_to_end(key)
        return self._verdicts[key][0]

    def put(self, key: VerdictKey, verdict: Verdict | Unknown, *, size: int) -> None:
        """Keep a verdict of `size` bytes."""
        self._bytes += size - self._verdicts.pop(key, (verdict, 0))[1]
        self._verdicts[key] = verdict, size
        while (
            len(self._verdicts) > self._limits.verdicts or self._bytes > self._limits.verdict_bytes
        ):
            _, (_, dropped) = self._verdicts.popitem(last=False)
            self._bytes -= dropped


_MAX_LOG_LINES: Final = 3
_MAX_LOG_LINE: Final = 200
"""Characters of one log line in a message."""
_DOUBTS: Final = {
    Doubt.REQUEST_FAILED: Reason.FIRST_REQUEST_FAILED,
    Doubt.REQUEST_HELD: Reason.FIRST_REQUEST_HELD,
    Doubt.CALLOUT: Reason.CALLOUT_NEEDED,
    Doubt.ENVIRONMENT: Reason.DEPENDS_ON_ENVOY,
    Doubt.LIMIT: Reason.SANDBOX_LIMIT,
    Doubt.UNSUPPORTED: Reason.SANDBOX_UNSUPPORTED,
}


def plugin_of(envoyfilter: Mapping[str, Any]) -> Plugin:
    """The plugin that Envoy gets from an EnvoyFilter that `envoyfilter.render` made."""
    config = envoyfilters.plugin_config_of(envoyfilter)
    if config is None:
        return Plugin()
    vm = config["vmConfig"]
    configuration = config.get("configuration")
    policy = FailurePolicy.DEPRECATED_OPEN if config.get("failOpen") else FailurePolicy.CLOSED
    if config.get("failurePolicy") == "FAIL_RELOAD":
        policy = FailurePolicy.RELOAD
    return Plugin(
        name=config.get("name", ""),
        root_id=config.get("rootId", ""),
        vm_id=vm.get("vmId", ""),
        configuration=configuration["value"].encode() if configuration is not None else None,
        environment=(vm.get("environmentVariables") or {}).get("keyValues") or {},
        failure_policy=policy,
        allow_on_headers_stop_iteration=config.get("allowOnHeadersStopIteration", False),
    )


def described(verdict: Verdict, plugin: Plugin) -> tuple[str, Reason, str]:
    """Status (`True`, `False`, `Unknown`), reason and message of the condition `Starts`."""
    if verdict.outcome is Outcome.STARTS:
        return "True", Reason.STARTED, "the module starts with this configuration"
    log = ""
    if verdict.log:
        lines = [shown(line, most=_MAX_LOG_LINE) for line in verdict.log[-_MAX_LOG_LINES:]]
        log = f"; its last log lines: {' | '.join(lines)}"
    if verdict.outcome is Outcome.DOUBTFUL:
        reason = _DOUBTS.get(verdict.doubt, Reason.DEPENDS_ON_ENVOY) if verdict.doubt else None
        return "Unknown", reason or Reason.DEPENDS_ON_ENVOY, f"{verdict.message}{log}"
    consequence = consequence_of(plugin)
    if verdict.phase == StartPhase.CONFIGURE:
        message = f"spec.filter.pluginConfig: the module refuses it ({verdict.message}), so {consequence}{log}"
        return "False", Reason.CONFIGURATION_REFUSED, message
    message = f"the module does not start ({verdict.message}), so {consequence}{log}"
    return "False", Reason.START_FAILED, message


def consequence_of(plugin: Plugin) -> str:
    """What Envoy does while the module does not start."""
    effect = "pass requests without the filter" if plugin.fail_open else "answer 503"
    return f"every sidecar would {effect}"
