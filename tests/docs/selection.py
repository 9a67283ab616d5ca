"""Which pages run in which environment, and which of their commands do not run."""

from tests.docs import blocks

LAPTOP = {"docs/tutorial/laptop.md", "README.md"}
TUTORIAL = "docs/tutorial/cluster.md"
INSTALL = "docs/install.md"
PRIVATE = {"docs/how-to/private-registry.md"}
"""`$REGISTRY` asks for a login there."""

NOT_RUN = {
    "make ": "they are what runs the tests",
    "python3 -m venv": "the tests run the package that is installed beside them",
    "docker ": "there is no docker daemon among the parts; tests/manifests/test_image.py reads the Dockerfile",
    "helm uninstall": "its hook is a Pod: tests/manifests/test_chart_cluster.py runs it, as a kubelet would",
    "kubectl exec": "there is no kubelet among the parts; tests/e2e/test_cluster_mesh.py asks a real sidecar",
}
"""Commands that no test runs, by their beginning, each with the reason."""
MESH_CONFIG_KEYS = {"serviceSettings"}
"""Top-level keys of MeshConfig, which has no schema to check a block with; tests/e2e/test_chart_mesh.py sets it."""


def in_cluster() -> list[str]:
    """Pages with commands or files that run where the tutorial has installed wasmer."""
    return [
        page
        for page in blocks.pages()
        if page not in LAPTOP | {TUTORIAL, INSTALL}
        and any(block.language != "text" for block in blocks.read(page))
    ]
