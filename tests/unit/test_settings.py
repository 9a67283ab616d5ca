import dataclasses
from pathlib import Path

import pytest

from autowasm.limits import ENVOY_MODULE_LIMIT, Limits, ServeLimits
from autowasm.settings import EnvoyFetch, Settings


def test_module_limit_is_envoys() -> None:
    assert Limits().module_bytes == ENVOY_MODULE_LIMIT == 33_554_432


def test_envoy_gets_the_service_in_istios_and_in_dns_form() -> None:
    envoy = EnvoyFetch(
        service_name="w", service_namespace="mesh", service_port=1, cluster_domain="x"
    )
    assert envoy.cluster == "outbound|1||w.mesh.svc.x"
    assert envoy.authority == "w.mesh:1"


def test_overrides_win() -> None:
    envoy = EnvoyFetch(cluster_override="wasmer", authority_override="127.0.0.1:1")
    assert (envoy.cluster, envoy.authority) == ("wasmer", "127.0.0.1:1")


def test_idle_connections_outlive_envoys_pool() -> None:
    assert ServeLimits().keepalive_timeout > 3600


def test_settings_cannot_change() -> None:
    settings = Settings(cache_dir=Path("cache"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.workers = 9  # type: ignore[misc]
