"""Which layers are searched, in which order."""

import pytest

from autowasm.digest import Digest
from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.registry import mediatypes
from autowasm.registry.layouts import PACKING, Layout, Packing, choose_layout
from autowasm.registry.manifest import Descriptor, Manifest


def layer(media_type: str, name: str) -> Descriptor:
    return Descriptor(media_type=media_type, digest_text=str(Digest.of(name.encode())), size=1)


def layout(*layers: Descriptor, config: str = mediatypes.OCI_IMAGE_CONFIG) -> Layout:
    manifest = Manifest(schema_version=2, config=layer(config, "config"), layers=layers)
    return choose_layout(manifest, limits=Limits())


def digests(chosen: Layout) -> list[Digest]:
    return [candidate.descriptor.digest for candidate in chosen.candidates]


def named(*names: str) -> list[Digest]:
    return [Digest.of(name.encode()) for name in names]


@pytest.mark.parametrize("with_config_layer", [True, False])
def test_an_artifact_is_its_content_layer(with_config_layer: bool) -> None:
    layers = [layer(mediatypes.WASM_CONFIG, "config")] if with_config_layer else []
    chosen = layout(
        *layers, layer(mediatypes.WASM_CONTENT, "module"), config=mediatypes.WASM_CONFIG
    )
    assert chosen.kind == "artifact"
    assert digests(chosen) == named("module")
    assert chosen.candidates[0].packing is Packing.RAW


@pytest.mark.parametrize(
    "media_type",
    [media_type for media_type, packing in PACKING.items() if packing is not Packing.RAW],
)
def test_an_image_is_searched_from_its_last_layer(media_type: str) -> None:
    chosen = layout(layer(media_type, "first"), layer(media_type, "last"))
    assert chosen.kind == "image"
    assert digests(chosen) == named("last", "first")
    assert {candidate.packing for candidate in chosen.candidates} == {PACKING[media_type]}


def test_a_layer_that_comes_twice_is_searched_once() -> None:
    tar = mediatypes.OCI_LAYER_TAR_GZIP
    assert digests(layout(layer(tar, "a"), layer(tar, "b"), layer(tar, "a"))) == named("a", "b")


def test_layers_of_other_types_are_passed_over() -> None:
    chosen = layout(
        layer("application/vnd.module.wasm.doc.v1+markdown", "doc"),
        layer(mediatypes.OCI_LAYER_TAR_GZIP, "content"),
        config="application/vnd.unknown.config.v1+json",
    )
    assert digests(chosen) == named("content")


def test_an_artifact_of_two_modules_is_rejected() -> None:
    with pytest.raises(ContentRejected) as caught:
        layout(layer(mediatypes.WASM_CONTENT, "a"), layer(mediatypes.WASM_CONTENT, "b"))
    assert caught.value.reason == "AmbiguousModule"
    assert str(Digest.of(b"a")) in str(caught.value)


def test_modules_that_compete_are_named_as_the_producer_named_them() -> None:
    first, second = (
        Descriptor(
            media_type=media_type,
            digest_text=str(Digest.of(name.encode())),
            size=1,
            annotations={mediatypes.TITLE: name},
        )
        for media_type, name in (
            (mediatypes.WASM_CONTENT, "auth.wasm"),
            (mediatypes.CNCF_WASM, "log\n.wasm"),
        )
    )
    with pytest.raises(ContentRejected, match=r"'auth.wasm' sha256:\w+, 'log\\n.wasm' sha256"):
        layout(first, second)


@pytest.mark.parametrize(
    "media_type", [mediatypes.WASM_CONTENT, mediatypes.CNCF_WASM, mediatypes.WASM_TO_OCI]
)
def test_every_kind_of_artifact_is_its_one_module(media_type: str) -> None:
    chosen = layout(layer("text/markdown", "doc"), layer(media_type, "module"))
    assert (chosen.kind, digests(chosen)) == ("artifact", named("module"))


def test_image_without_a_usable_layer_is_rejected_naming_the_media_types() -> None:
    with pytest.raises(ContentRejected) as caught:
        layout(layer("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "chart"))
    assert caught.value.reason == "UnsupportedLayout"
    assert "helm.chart" in str(caught.value)
    with pytest.raises(ContentRejected, match="the layers are nothing"):
        layout()


def test_too_many_layers_are_rejected() -> None:
    layers = [
        layer(mediatypes.OCI_LAYER_TAR, str(number)) for number in range(Limits().image_layers + 1)
    ]
    with pytest.raises(ContentRejected) as caught:
        layout(*layers)
    assert caught.value.reason == "TooLarge"
    assert "the image has 129 layers; at most 128 are accepted" in str(caught.value)
    assert len(layout(*layers[:-1]).candidates) == 128


def test_of_modules_that_compete_four_are_named_and_the_others_counted() -> None:
    def message(count: int) -> str:
        with pytest.raises(ContentRejected) as caught:
            layout(*(layer(mediatypes.WASM_CONTENT, str(number)) for number in range(count)))
        return str(caught.value)

    names = [str(Digest.of(str(number).encode())) for number in range(6)]
    assert f"holds 4 modules ({', '.join(names[:4])});" in message(4)
    assert f"holds 5 modules ({', '.join(names[:4])}, 1 more);" in message(5)
    assert f"holds 6 modules ({', '.join(names[:4])}, 2 more);" in message(6)
