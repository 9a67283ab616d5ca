"""Other readers' rules where the table is too coarse. tests/integration/cli/test_layouts.py runs Istio's own code."""

import msgspec
import pytest

from autowasm.digest import Digest
from autowasm.registry import mediatypes
from autowasm.registry.consumers import ConsumerVerdict, LastLayer, answers, index_child
from autowasm.registry.layouts import ENVOY_GATEWAY, ISTIO, KWCTL, WASME, WKG
from autowasm.registry.manifest import Descriptor, ImageIndex, Manifest, Platform

GZIP = mediatypes.OCI_LAYER_TAR_GZIP
GOOD = LastLayer(is_gzip=True, plugin=True)


def descriptor(media_type: str, name: str = "x", platform: Platform | None = None) -> Descriptor:
    digest = str(Digest.of(name.encode()))
    return Descriptor(media_type=media_type, digest_text=digest, size=1, platform=platform)


def image(*types: str, kind: str | None = mediatypes.OCI_MANIFEST, config: str = "a/b") -> Manifest:
    layers = tuple(descriptor(each, str(number)) for number, each in enumerate(types))
    return Manifest(schema_version=2, media_type=kind, config=descriptor(config), layers=layers)


@pytest.mark.parametrize(
    ("manifest", "last", "why"),
    [
        (image(GZIP), LastLayer(is_gzip=False, plugin=None), "compressed with gzip"),
        (image(GZIP), LastLayer(is_gzip=True, plugin=None), "plugin.wasm in the last layer"),
        (image(GZIP), LastLayer(is_gzip=True, plugin=False), "not a module"),
        (
            image(GZIP, mediatypes.WASM_CONTENT, GZIP),
            LastLayer(is_gzip=True, plugin=None),
            "exactly two layers",
        ),
        (image(mediatypes.WASM_CONTENT), None, "there is 1"),
        (image(), None, "layers are nothing"),
        (image(GZIP, kind=mediatypes.DOCKER_MANIFEST), GOOD, "rootfs.diff.tar.gzip"),
        (image(mediatypes.DOCKER_LAYER_TAR_GZIP), GOOD, "v1.tar+gzip"),
        (
            image(mediatypes.WASM_CONFIG, mediatypes.WASM_CONTENT, kind=mediatypes.DOCKER_MANIFEST),
            None,
            "last",
        ),
    ],
)
def test_istio_and_envoy_gateway_name_the_missing_requirement(
    manifest: Manifest, last: LastLayer | None, why: str
) -> None:
    verdicts = answers(manifest, last)
    assert verdicts[ISTIO] == verdicts[ENVOY_GATEWAY]
    assert not verdicts[ISTIO].reads
    assert why in verdicts[ISTIO].why


def test_istio_and_its_copy_know_sha256_only() -> None:
    for strange in ("config", "layer"):
        whole = image(mediatypes.WASM_CONFIG, mediatypes.WASM_CONTENT)
        digest = f"sha512:{'0' * 128}"
        if strange == "config":
            changed = msgspec.structs.replace(
                whole, config=msgspec.structs.replace(whole.config, digest_text=digest)
            )
        else:
            assert whole.layers
            layer = msgspec.structs.replace(whole.layers[0], digest_text=digest)
            changed = msgspec.structs.replace(whole, layers=(layer, whole.layers[1]))
        assert answers(whole, None)[ISTIO].reads
        verdicts = answers(changed, None)
        assert "sha256" in verdicts[ISTIO].why
        assert not verdicts[ENVOY_GATEWAY].reads


def test_istio_tries_the_artifact_where_the_image_fails() -> None:
    verdicts = answers(image(mediatypes.WASM_CONTENT, GZIP), LastLayer(is_gzip=True, plugin=None))
    assert verdicts[ISTIO].reads


def test_kwctl_and_wkg_want_nothing_but_their_own_layers() -> None:
    mixed = answers(image(mediatypes.WASM_TO_OCI, "text/markdown"), None)
    assert not mixed[KWCTL].reads
    assert not answers(image(), None)[KWCTL].reads
    two = image(mediatypes.CNCF_WASM, mediatypes.CNCF_WASM, config=mediatypes.CNCF_CONFIG_V0)
    assert "exactly one" in answers(two, None)[WKG].why
    other = image(mediatypes.CNCF_WASM, config=mediatypes.CNCF_CONFIG_V1)
    assert mediatypes.CNCF_CONFIG_V0 in answers(other, None)[WKG].why


def test_wasme_takes_the_module_wherever_it_is() -> None:
    assert answers(image("text/x", mediatypes.WASM_CONTENT, "text/y"), None)[WASME].reads


AMD64 = Platform(os="linux", architecture="amd64")
ARM64 = Platform(os="linux", architecture="arm64")


@pytest.mark.parametrize(
    ("platforms", "istio", "kwctl"),
    [
        ([ARM64, AMD64, AMD64], 1, 1),
        ([None, AMD64], 0, 1),
        ([ARM64, None], 1, None),
        ([ARM64], None, None),
        ([], None, None),
    ],
)
def test_of_an_index_others_take_the_first_entry_for_their_platform(
    platforms: list[Platform | None], istio: int | None, kwctl: int | None
) -> None:
    entries = tuple(
        descriptor(mediatypes.OCI_MANIFEST, str(number), platform)
        for number, platform in enumerate(platforms)
    )
    index = ImageIndex(schema_version=2, manifests=entries)
    for consumer, wanted in ((ISTIO, istio), (ENVOY_GATEWAY, istio), (KWCTL, kwctl)):
        chosen = index_child(consumer, index)
        if wanted is None:
            assert isinstance(chosen, ConsumerVerdict)
            assert "linux/amd64" in chosen.why
        else:
            assert chosen is entries[wanted]
    assert isinstance(index_child(WASME, index), ConsumerVerdict)
