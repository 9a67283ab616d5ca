"""Which pages run in which environment, and which of their commands do not run."""

from tests.docs import blocks

LAPTOP = {
    "docs/tutorial/laptop.md",
    "docs/tutorial/test-your-filter.md",
    "docs/reference/wasmc-test.md",
    "README.md",
}
TUTORIAL = "docs/tutorial/cluster.md"
INSTALL = "docs/install.md"
PRIVATE = {"docs/how-to/private-registry.md"}
"""`$REGISTRY` asks for a login there."""

TRANSLATIONS = {
    "README.zh-CN.md": "README.md",
    "docs/tutorial/laptop.zh-CN.md": "docs/tutorial/laptop.md",
}
"""Pages in another language, and whose commands they have; test_translations.py holds them to these."""

NOT_RUN = {
    "make ": "they are what runs the tests",
    "git clone": "the tests run the checkout and the package that is installed beside them",
    "GOBIN=": "the tests have another registry",
    "kill ": "each block of a page has a shell of its own in the tests, which ends what it has started",
    "curl --fail --location": "releases are on another server; tests/release/test_dist.py runs their files",
    "pipx ": "the package index has released versions only; tests/manifests/test_image.py installs the wheel",
    "uv tool ": "the same",
    "helm repo add": "tests/release/test_chart_index.py does it with an index on this machine",
    "helm install oci:": "the registry of releases is on another machine",
    "cosign ": "only releases are signed",
    "gh ": "only releases have statements of provenance",
    "docker ": "there is no docker daemon among the parts; tests/manifests/test_image.py reads the Dockerfile",
    "helm uninstall": "its hook is a Pod: tests/manifests/test_chart_cluster.py runs it, as a kubelet would",
    "kubectl patch configmap argocd-cm": "there is no Argo CD; tests/integration/gitops runs its health check",
    "kubectl exec": "there is no kubelet among the parts; tests/e2e/test_cluster_mesh.py asks a real sidecar",
}
"""Commands that no test runs, by their beginning, each with the reason."""
KUSTOMIZATION_KEYS = {"resources", "namespace", "namePrefix", "images"}
MESH_CONFIG_KEYS = {"serviceSettings"}
"""Top-level keys of MeshConfig, which has no schema to check a block with; tests/e2e/test_chart_mesh.py sets it."""


def in_cluster() -> list[str]:
    """Pages with commands or files that run where the tutorial has installed wasmer."""
    return [
        page
        for page in blocks.pages()
        if page not in LAPTOP | {TUTORIAL, INSTALL} | TRANSLATIONS.keys()
        and any(block.language != "text" for block in blocks.read(page))
    ]
