"""check_reach(): may this AutoWasm select what it selects? Pure.

Not validation of the object alone: the answer depends on the mesh's root namespace and on what the operator allows.
"""

from autowasm.api.v1alpha1 import AutoWasm
from autowasm.errors import SpecError
from autowasm.settings import Cluster


def check_reach(autowasm: AutoWasm, *, cluster: Cluster) -> None:
    """Raises SpecError (`MeshWideNotAllowed`) for an empty selector in the root namespace: the whole mesh."""
    everywhere = (
        autowasm.metadata.namespace == cluster.root_namespace
        and not autowasm.spec.selector.match_labels
    )
    if everywhere and not cluster.allow_mesh_wide:
        raise SpecError(
            "spec.selector.matchLabels",
            f"is empty in the mesh's root namespace ({cluster.root_namespace}), which selects every workload of the "
            "mesh; name labels, or start wasmer with --allow-mesh-wide",
            reason="MeshWideNotAllowed",
        )
