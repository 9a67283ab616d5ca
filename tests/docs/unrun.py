"""What no test of the documentation runs, each with the reason. Keys are how a block's first command begins."""

UNRUN = {
    "make ": "they are what runs the tests",
    "python3 -m venv": "the tests run the package that is installed beside them",
    "docker ": "there is no docker daemon among the parts; tests/manifests/test_image.py reads the Dockerfile",
    "helm uninstall": "its hook is a Pod: tests/manifests/test_chart_cluster.py runs it, as a kubelet would",
    "kubectl exec": "there is no kubelet among the parts; tests/e2e/test_cluster_mesh.py asks a real sidecar",
}

MESH_CONFIG = {"serviceSettings"}
"""Top-level keys of MeshConfig: there is no schema of it to hold it against; tests/e2e/test_chart_mesh.py sets it."""
