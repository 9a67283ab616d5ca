from typing import Any

import pytest

from autowasm.api.v1alpha1 import FailStrategy, PatchContext, PullPolicy
from tests.fakes.autowasms import URL, autowasm

DIGEST = "@sha256:" + "1" * 64
IF_NOT_PRESENT, ALWAYS = PullPolicy.IF_NOT_PRESENT, PullPolicy.ALWAYS


@pytest.mark.parametrize(
    ("image", "written", "in_force"),
    [
        ("a/b:v1", None, IF_NOT_PRESENT),
        ("a/b", None, ALWAYS),
        ("a/b:latest", None, ALWAYS),
        ("a/b:v1", "Always", ALWAYS),
        ("a/b:latest", "IfNotPresent", IF_NOT_PRESENT),
        ("a/b" + DIGEST, None, IF_NOT_PRESENT),
        ("a/b" + DIGEST, "Always", IF_NOT_PRESENT),
        ("a/b:latest" + DIGEST, None, IF_NOT_PRESENT),
        (None, None, IF_NOT_PRESENT),
        (None, "Always", ALWAYS),
    ],
)
def test_pull_policy_in_force(image: str | None, written: str | None, in_force: PullPolicy) -> None:
    fields: dict[str, Any] = {"pullPolicy": written} if written else {}
    if image is None:
        fields["source"] = {"object": {"url": URL}}
    else:
        fields["image"] = image
    assert autowasm(**fields).pull_policy is in_force


def test_defaults() -> None:
    result = autowasm()
    assert result.spec.filter.fail_strategy is FailStrategy.FAIL_CLOSE
    assert result.spec.filter.context is PatchContext.SIDECAR_INBOUND
    assert result.spec.filter.apply_ports is None
    assert result.spec.secret is None


def test_namespace_of_a_file_is_default() -> None:
    assert autowasm(metadata={"namespace": "default"}) == autowasm()


def test_source_strings_tell_sources_apart() -> None:
    assert str(autowasm(image="a/b:v1").spec.filter.source) == "registry:a/b:v1"
    of_object = autowasm(source={"object": {"url": URL}})
    assert str(of_object.spec.filter.source) == f"object:{URL}"
    assert of_object.image is None
