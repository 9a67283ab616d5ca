"""The statistics of a sidecar, from pages as real Envoys write them."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from autowasm.controller.pods import envoystats
from autowasm.controller.pods.envoystats import ReloadCounts, Requests, parse, series_of

PAGE = b"""\
# TYPE envoy_listener_manager_listener_create_success counter
envoy_listener_manager_listener_create_success{} 4
# TYPE envoy_listener_manager_lds_update_rejected counter
envoy_listener_manager_lds_update_rejected{} 1
# TYPE envoy_wasm_hello_world_x_0123456789ab_vm_reload counter
envoy_wasm_hello_world_x_0123456789ab_vm_reload{} 0
# TYPE envoy_wasm_hello_world_x_0123456789ab_vm_reload_backoff counter
envoy_wasm_hello_world_x_0123456789ab_vm_reload_backoff{} 3
# TYPE envoy_wasm_hello_world_x_0123456789ab_vm_reload_failure counter
envoy_wasm_hello_world_x_0123456789ab_vm_reload_failure{} 2
# TYPE envoy_wasm_hello_world_x_0123456789ab_vm_reload_success counter
envoy_wasm_hello_world_x_0123456789ab_vm_reload_success{} 1
# TYPE envoy_wasm_redis_vm_reload counter
envoy_wasm_redis_vm_reload{cache="first"} 0
# TYPE envoy_wasm_remote_load_cache_hits counter
envoy_wasm_remote_load_cache_hits{} 2
# TYPE envoy_wasm_remote_load_fetch_failures counter
envoy_wasm_remote_load_fetch_failures{} 5
# TYPE envoy_wasm_remote_load_fetch_successes counter
envoy_wasm_remote_load_fetch_successes{} 7
# TYPE envoy_listener_manager_total_listeners_warming gauge
envoy_listener_manager_total_listeners_warming{} 1
# TYPE envoy_listener_manager_total_listeners_draining gauge
envoy_listener_manager_total_listeners_draining{} 1
# TYPE envoy_listener_manager_total_filter_chains_draining gauge
envoy_listener_manager_total_filter_chains_draining{} 2
# TYPE envoy_listener_manager_listener_added counter
envoy_listener_manager_listener_added{} 3
# TYPE envoy_listener_manager_listener_modified counter
envoy_listener_manager_listener_modified{} 4
# TYPE envoy_listener_manager_listener_in_place_updated counter
envoy_listener_manager_listener_in_place_updated{} 5
# TYPE envoy_server_concurrency gauge
envoy_server_concurrency{} 2
# TYPE envoy_server_uptime gauge
envoy_server_uptime{} 90
# TYPE envoy_wasm_envoy_wasm_runtime_v8_active gauge
envoy_wasm_envoy_wasm_runtime_v8_active{} 4
"""
HTTP = b"""\
envoy_http_downstream_rq_xx{envoy_response_code_class="2",envoy_http_conn_manager_prefix="inbound-1"} 40
envoy_http_downstream_rq_xx{envoy_response_code_class="5",envoy_http_conn_manager_prefix="inbound-2"} 2
envoy_http_downstream_rq_xx{envoy_response_code_class="5",envoy_http_conn_manager_prefix="outbound-1"} 900
envoy_http_downstream_rq_xx{envoy_response_code_class="2",envoy_http_conn_manager_prefix="admin"} 900
"""
ISTIO = b"""\
istio_requests_total{reporter="destination",source_workload="a \\"b\\", c",response_code="200",response_flags="-"} 10
istio_requests_total{reporter="destination",source_workload="other",response_code="204",response_flags="-"} 5
istio_requests_total{reporter="destination",source_workload="a",response_code="503",response_flags="-"} 3
istio_requests_total{reporter="destination",source_workload="a",response_code="0",response_flags="DC"} 1
istio_requests_total{reporter="source",source_workload="a",response_code="500",response_flags="-"} 900
"""


def test_page_of_a_real_envoy_is_read() -> None:
    stats = parse(PAGE, read_at=12.5)
    assert stats.is_envoy
    assert stats.reloads_of("hello-world.x-0123456789ab") == ReloadCounts(1, 2, 3)
    assert stats.reloads_of("redis-cache.first") == ReloadCounts()
    assert stats.reloads_of("redis") is None
    assert stats.others("redis-cache.first") == {"hello_world_x_0123456789ab"}
    assert (stats.active_vms, stats.fetched, stats.fetch_failures) == (4, 9, 5)
    assert (stats.warming, stats.rejected, stats.listeners_created) == (1, 1, 4)
    assert (stats.draining, stats.listeners_changed) == (3, 12)
    assert (stats.concurrency, stats.uptime, stats.read_at) == (2, 90, 12.5)
    assert stats.requests is None


def test_absent_statistics_are_not_zero() -> None:
    stats = parse(b"")
    assert not stats.is_envoy
    assert (stats.active_vms, stats.warming, stats.requests) == (None, None, None)
    assert (stats.draining, stats.listeners_changed) == (None, None)


def test_plugins_and_names_beyond_the_limits_are_dropped() -> None:
    many = b"".join(b"envoy_wasm_p%d_vm_reload{} 0\n" % number for number in range(300))
    stats = parse(many + b"envoy_wasm_p0_vm_reload_success{} 7\n")
    assert len(stats.plugins) == envoystats.MAX_PLUGINS
    assert stats.reloads_of("p0") == ReloadCounts(success=7)
    long = b"x" * envoystats.MAX_SERIES
    assert set(parse(b"envoy_wasm_%s_vm_reload{} 0\n" % long).plugins) == {long.decode()}
    assert not parse(b"envoy_wasm_%sx_vm_reload{} 0\n" % long).plugins


def test_requests_are_those_that_arrive_at_the_service() -> None:
    assert parse(HTTP).requests == Requests({2: 40, 5: 2})


def test_requests_of_an_envoy_with_istios_tags_are_the_same() -> None:
    renamed = HTTP.replace(b"_rq_xx", b"_rq").replace(b"envoy_response", b"response")
    renamed = renamed.replace(b'"2"', b'"2xx"').replace(b'"5"', b'"5xx"')
    assert parse(renamed).requests == Requests({2: 40, 5: 2})


def test_requests_of_an_envoy_without_inbound_listeners_are_all_but_its_own() -> None:
    found = parse(HTTP.replace(b"inbound", b"web")).requests
    assert found == Requests({2: 40, 5: 902})


def test_istios_requests_take_precedence_and_only_the_receiving_side_counts() -> None:
    assert parse(HTTP + ISTIO).requests == Requests({0: 1, 2: 15, 5: 3})


def test_requests_since_are_the_difference_of_each_class() -> None:
    before, after = Requests({2: 10, 5: 1}), Requests({2: 16, 5: 3})
    assert after.since(before) == Requests({2: 6, 5: 2})
    assert before.since(after) is None, "a counter went back"


@pytest.mark.parametrize(
    ("plugin", "series"),
    [
        ("a-b.c", ("a_b_c",)),
        ("redis-cache.x", ("redis_cache_x", "redis{cache=x}")),
        ("cache.x", ("cache_x", "{cache=x}")),
        ("a.component.b.c", ("a_component_b_c", "a_c{component=b}")),
        ("my-cache", ("my_cache",)),
        ("x-vm_reload", ("x_vm_reload",)),
    ],
)
def test_series_of_a_plugin_are_as_envoy_and_istio_write_them(
    plugin: str, series: tuple[str, ...]
) -> None:
    assert series_of(plugin) == series


@pytest.mark.parametrize(
    ("page", "is_text"),
    [
        (b"", True),
        (PAGE, True),
        (b"a 1\n", True),
        (b'a{b="c"} 1\n', True),
        (b"<!doctype html>", False),
        (b'{"stats": []}', False),
        (b"hello", False),
        (b"\x1f\x8b\x08", False),
    ],
)
def test_another_format_is_distinguished_from_prometheus(page: bytes, is_text: bool) -> None:
    assert envoystats.is_prometheus(page) == is_text


@pytest.mark.parametrize(
    ("name", "is_asked_for"),
    [
        ("wasm.x.vm_reload", True),
        ("wasm.envoy.wasm.runtime.v8.active", True),
        ("server.uptime", True),
        ("server.total_connections", False),
        ("listener_manager.lds.update_rejected", True),
        ("listener_manager.lds.update_duration", False),
        ("listener_manager.listener_in_place_updated", True),
        ("listener_manager.listener_removed", False),
        ("listener_manager.total_filter_chains_draining", True),
        ("listener_manager.total_listeners_active", False),
        ("http.inbound_0.0.0.0_80;.downstream_rq_5xx", True),
        ("http.inbound.downstream_rq_total", False),
        ("istiocustom.istio_requests_total.reporter.destination.source_workload.x", True),
        ("istiocustom.istio_requests_total.reporter.source.source_workload.x", False),
        ("cluster.wasm.x", False),
    ],
)
def test_request_asks_for_these_statistics_only(name: str, is_asked_for: bool) -> None:
    (pattern,) = parse_qs(urlsplit(envoystats.TARGET).query)["filter"]
    assert bool(re.search(pattern, name)) == is_asked_for
