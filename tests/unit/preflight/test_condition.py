"""The plugin of a rendered EnvoyFilter has the bytes that Envoy gets."""

import pytest

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import validation
from autowasm.api.record import Record
from autowasm.preflight.verdicts import plugin_of
from autowasm.sandbox.plugin import FailurePolicy
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import IMAGE, document
from tests.fakes.modulesource import sha256_of

SHA256 = sha256_of(b"a module")
RECORD = Record(source=f"registry:{IMAGE}", sha256=SHA256, size=8, abi="0.2.1")


@pytest.mark.parametrize(
    ("strategy", "policy"),
    [
        ("FAIL_CLOSE", FailurePolicy.CLOSED),
        ("FAIL_OPEN", FailurePolicy.DEPRECATED_OPEN),
        ("FAIL_RELOAD", FailurePolicy.RELOAD),
    ],
)
def test_plugin_of_the_trial_equals_the_rendered_one(strategy: str, policy: FailurePolicy) -> None:
    autowasm = validation.parse(document(pluginConfig={"b": 1.0, "a": "ü"}, failStrategy=strategy))
    plugin = plugin_of(envoyfilters.render(autowasm, RECORD, EnvoyFetch()))
    assert plugin.configuration == '{"b":1,"a":"ü"}'.encode()
    assert plugin.failure_policy is policy
    assert plugin.name == "test"
    assert plugin.vm_id.startswith(f"default.test-{SHA256[:12]}")
    assert not plugin.allow_on_headers_stop_iteration


def test_plugin_may_stop_at_headers_alone_where_envoy_lets_it() -> None:
    autowasm = validation.parse(document(allowOnHeadersStopIteration=True))
    plugin = plugin_of(envoyfilters.render(autowasm, RECORD, EnvoyFetch()))
    assert plugin.allow_on_headers_stop_iteration
