"""Which labels a selector matches (`metav1.LabelSelector`), and the fields of a Pod that an explanation uses."""

from typing import Any

import pytest

from autowasm.explain.objects import LabelSelector, Service
from tests.parts.explained import decoded, pod


@pytest.mark.parametrize(
    ("requirement", "matching", "others"),
    [
        (
            {"operator": "In", "values": ["a", "b"]},
            [{"app": "a"}, {"app": "b"}],
            [{"app": "c"}, {}],
        ),
        ({"operator": "NotIn", "values": ["a"]}, [{"app": "b"}, {}], [{"app": "a"}]),
        ({"operator": "Exists"}, [{"app": ""}], [{}, {"other": "x"}]),
        ({"operator": "DoesNotExist"}, [{}, {"other": "x"}], [{"app": ""}]),
    ],
)
def test_expressions_match_as_in_kubernetes(
    requirement: dict[str, Any], matching: list[dict[str, str]], others: list[dict[str, str]]
) -> None:
    document = {"matchExpressions": [{"key": "app", **requirement}]}
    selector = decoded(LabelSelector, document)
    assert all(selector.matches(labels) for labels in matching)
    assert not any(selector.matches(labels) for labels in others)


def test_labels_and_expressions_have_to_match() -> None:
    selector = decoded(
        LabelSelector,
        {
            "matchLabels": {"app": "a"},
            "matchExpressions": [{"key": "version", "operator": "Exists"}],
        },
    )
    assert selector.matches({"app": "a", "version": "v1"})
    assert not selector.matches({"app": "a"})
    assert not selector.matches({"version": "v1"})


def test_empty_selector_matches_everything_but_a_service_without_one_has_no_pods() -> None:
    assert decoded(LabelSelector, {}).matches({})
    one = pod()
    namespace = one.metadata.namespace
    service = {"metadata": {"name": "s", "namespace": namespace}, "spec": {}}
    assert not decoded(Service, service).selects(one)
