from typing import Any

import pytest

from autowasm.controller.sourcepolicy import check_mesh_scope
from autowasm.errors import SpecError
from autowasm.settings import Cluster
from tests.fakes.autowasms import autowasm

EVERYTHING: dict[str, Any] = {"selector": {"matchLabels": {}}}


def test_mesh_wide_selector_needs_the_operators_flag() -> None:
    mesh_wide = autowasm(namespace="istio-system", spec=EVERYTHING)
    with pytest.raises(SpecError, match="--allow-mesh-wide") as caught:
        check_mesh_scope(mesh_wide, cluster=Cluster())
    assert caught.value.reason == "MeshWideNotAllowed"
    assert caught.value.field == "spec.selector.matchLabels"
    check_mesh_scope(mesh_wide, cluster=Cluster(allow_mesh_wide=True))


@pytest.mark.parametrize(
    "fields", [{"namespace": "default", "spec": EVERYTHING}, {"namespace": "istio-system"}]
)
def test_one_namespace_or_labels_need_none(fields: dict[str, Any]) -> None:
    check_mesh_scope(autowasm(**fields), cluster=Cluster())


def test_root_namespace_is_the_meshs_own() -> None:
    with pytest.raises(SpecError):
        check_mesh_scope(
            autowasm(namespace="mesh", spec=EVERYTHING), cluster=Cluster(root_namespace="mesh")
        )
