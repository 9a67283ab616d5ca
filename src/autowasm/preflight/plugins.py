"""The plugin that Envoy gets from an EnvoyFilter: the controller judges it, and `wasmc` runs it.

Invariant: its bytes are those of the rendered EnvoyFilter, so that a verdict is about what sidecars get.
"""

from collections.abc import Mapping
from typing import Any

from autowasm.api import envoyfilter as envoyfilters
from autowasm.sandbox.plugin import FailurePolicy, Plugin


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
