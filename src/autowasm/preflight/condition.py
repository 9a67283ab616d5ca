"""The condition `Starts`: its plugin, and a verdict as its status, reason and message.

Invariants: the plugin's bytes are those of the rendered EnvoyFilter, so a verdict applies to the plugin that sidecars get; the controller's
status and `wasmc` report the same verdict in the same words.
"""

from collections.abc import Mapping
from typing import Any, Final

from autowasm.api import envoyfilter as envoyfilters
from autowasm.reasons import Reason
from autowasm.sandbox.plugin import FailurePolicy, Plugin
from autowasm.sandbox.verdict import Doubt, Outcome, Verdict
from autowasm.sandbox.vm import StartPhase
from autowasm.text import shown

_LOG_LINES: Final = 3
_LOG_LINE: Final = 200
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
    """Status (`True`, `False`, `Unknown`), reason and message of the condition."""
    if verdict.outcome is Outcome.STARTS:
        return "True", Reason.STARTED, "the module starts with this configuration"
    log = ""
    if verdict.log:
        lines = [shown(line, most=_LOG_LINE) for line in verdict.log[-_LOG_LINES:]]
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
