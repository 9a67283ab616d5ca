"""Media types of manifests, configs and layers: the one table of names.

How each layer type is unpacked is in `layouts.py`. Sources: OCI image specification `media-types.md`, distribution
`manifest/schema2` and `manifestlist`, the WASM OCI artifact specification of solo.io (`module.wasm`).
"""

from typing import Final

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"

MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES: Final = frozenset({OCI_INDEX, DOCKER_MANIFEST_LIST})
SCHEMA_1: Final = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
"""Absent from registries since 2024: no sizes, layers in another order."""

ACCEPT: Final = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_MANIFEST_LIST))
"""The Accept header: every manifest type that we read."""

OCI_IMAGE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_IMAGE_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
WASM_CONFIG: Final = "application/vnd.module.wasm.config.v1+json"
CNCF_CONFIG_V0: Final = "application/vnd.wasm.config.v0+json"
CNCF_CONFIG_V1: Final = "application/vnd.wasm.config.v1+json"
"""Also the config type of wasm-to-oci, where it has no meaning."""

OCI_LAYER_TAR: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_TAR_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_TAR_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_LAYER_TAR: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_TAR_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_TAR_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
WASM_CONTENT: Final = "application/vnd.module.wasm.content.layer.v1+wasm"
CNCF_WASM: Final = "application/wasm"
WASM_TO_OCI: Final = "application/vnd.wasm.content.layer.v1+wasm"

TITLE: Final = "org.opencontainers.image.title"
"""Annotation of a layer: the file name that clients such as oras use for it."""
DOCKER_REFERENCE_TYPE: Final = "vnd.docker.reference.type"
"""Annotation of an index entry that is about another one: buildx attestations."""
VARIANT: Final = "module.wasm.image/variant"
"""Annotation of a manifest: `compat` for a container image that holds a module."""
RUNTIME_TYPE: Final = "module.wasm.runtime/type"
RUNTIME_ABI: Final = "module.wasm.runtime/abi_version"
WASM_ANNOTATIONS: Final = "module.wasm."
"""Prefix of annotations that mark a module, with any value."""
OCI_HANDLER: Final = "run.oci.handler"
"""Annotation by which crun and containerd's shims choose the handler of an image: `wasm`, `wasmedge`, …"""
CREATED: Final = "org.opencontainers.image.created"
SOURCE: Final = "org.opencontainers.image.source"
VERSION: Final = "org.opencontainers.image.version"
