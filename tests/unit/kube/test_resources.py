"""Keys and paths."""

import pytest

from autowasm.kube.resources import NAMESPACES, PODS, ObjectKey, ResourceType

WIDGETS = ResourceType("example.com", "v1alpha1", "widgets", "Widget")


def test_a_key_prints_as_kubectl_takes_it() -> None:
    assert str(ObjectKey("ns", "name")) == "ns/name"
    assert str(ObjectKey("", "name")) == "name"


def test_paths() -> None:
    assert PODS.path() == "/api/v1/pods"
    assert PODS.path(namespace="a", name="b") == "/api/v1/namespaces/a/pods/b"
    assert NAMESPACES.object_path(ObjectKey("", "a")) == "/api/v1/namespaces/a"
    assert WIDGETS.path(namespace="a") == "/apis/example.com/v1alpha1/namespaces/a/widgets"
    assert (
        WIDGETS.object_path(ObjectKey("a", "b"), subresource="status")
        == "/apis/example.com/v1alpha1/namespaces/a/widgets/b/status"
    )
    assert (WIDGETS.api_version, PODS.api_version) == ("example.com/v1alpha1", "v1")


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_a_name_cannot_lead_out_of_its_collection(name: str) -> None:
    with pytest.raises(ValueError, match="part of a path"):
        PODS.path(namespace="a", name=name)
    assert PODS.path(namespace="a", name="x/../y?z").endswith("/pods/x%2F..%2Fy%3Fz")


def test_scope_is_checked() -> None:
    with pytest.raises(ValueError, match="needs a namespace"):
        PODS.path(name="a")
    with pytest.raises(ValueError, match="no namespace"):
        NAMESPACES.path(namespace="a")
