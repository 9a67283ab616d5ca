"""The listener file that the real Envoy of the end-to-end tests gets, line by line."""

from typing import Any

import yaml

from autowasm.api.envoyfilter import render
from autowasm.settings import EnvoyFetch
from autowasm.standalone.listeners import ListenerTemplate
from tests.fakes import autowasms
from tests.parts.envoy import listeners_yaml
from tests.unit.standalone.lds import inject

EXPECTED = """\
resources:
- '@type': type.googleapis.com/envoy.config.listener.v3.Listener
  name: inbound-9080
  address:
    socket_address:
      address: 127.0.0.1
      port_value: 9080
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: inbound-9080
        route_config:
          name: inbound
          virtual_hosts:
          - name: inbound
            domains:
            - '*'
            routes:
            - match:
                prefix: /
              route:
                cluster: service
        http_filters:
        - name: first
        - name: second
        - name: envoy.filters.http.router
          typed_config:
            '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
"""


def template(*ports: int) -> Any:
    return yaml.safe_load(listeners_yaml(ports, cluster="service"))


def rendered(name: str, **filter_: Any) -> dict[str, Any]:
    autowasm = autowasms.autowasm(name=name, applyPorts=[9080], **filter_)
    return render(autowasm, autowasms.record(), EnvoyFetch())


def value(envoyfilter: dict[str, Any]) -> Any:
    return envoyfilter["spec"]["configPatches"][0]["patch"]["value"]


def test_listener_file_is_the_template_with_the_filters_before_the_router() -> None:
    filters = [rendered("second", priority=2), rendered("first", priority=-1)]
    for each in filters:
        body = value(each)
        name = each["metadata"]["name"]
        body.clear()
        body["name"] = name

    made = ListenerTemplate(listeners_yaml([9080], cluster="service"))

    assert made.inject(filters) == EXPECTED


def test_filters_stand_on_their_port_and_whole() -> None:
    ours = rendered("test")

    document = inject(template(9080, 9081), [ours])

    managers = [
        each["filter_chains"][0]["filters"][0]["typed_config"] for each in document["resources"]
    ]
    (router,) = managers[1]["http_filters"]
    assert managers[0]["http_filters"] == [value(ours), router]
    del managers[0]["http_filters"][0]
    assert document == template(9080, 9081)
