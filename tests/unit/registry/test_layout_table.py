"""The table of layouts: complete, consistent, the same in the docs, and in agreement with the consumers' rules."""

import pytest

from autowasm.digest import Digest
from autowasm.registry import mediatypes
from autowasm.registry.consumers import LastLayer, answers
from autowasm.registry.layouts import (
    CONSUMERS,
    PACKING,
    VARIANTS,
    WASMER,
    KnownLayout,
    Packing,
    table,
    variant_of,
)
from autowasm.registry.manifest import Descriptor, Manifest
from autowasm.wasm import archive
from tools.generate.pages import layouts as layouts_page
from tools.generate.paths import DOCS

PAGE = DOCS / "layouts.md"


def layer(media_type: str, name: str = "module") -> Descriptor:
    return Descriptor(media_type=media_type, digest_text=str(Digest.of(name.encode())), size=1)


def example(variant: KnownLayout) -> tuple[Manifest, Descriptor]:
    """An image of this row, from its text."""
    module = layer(variant.layer_types[0])
    layers = [module]
    if "two layers" in variant.name:
        layers.insert(0, layer(mediatypes.WASM_CONFIG, "config"))
    if "earlier" in variant.name:
        layers.append(layer(variant.layer_types[0], "other"))
    config = variant.config.split(" or ")[0].replace("any", mediatypes.OCI_IMAGE_CONFIG)
    is_docker = variant.name.startswith("Docker")
    manifest = Manifest(
        schema_version=2,
        media_type=mediatypes.DOCKER_MANIFEST if is_docker else mediatypes.OCI_MANIFEST,
        config=layer(config, "config"),
        layers=tuple(layers),
    )
    return manifest, module


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
def test_a_row_is_recognised_and_its_readers_follow_from_their_rules(variant: KnownLayout) -> None:
    manifest, module = example(variant)
    assert variant_of(manifest, module) is variant
    # The module is in the last layer, unless the row names another place.
    last = LastLayer(is_gzip=True, plugin=None if "earlier" in variant.name else True)
    told = {name for name, answer in answers(manifest, last).items() if answer.reads}
    assert {WASMER, *told} == set(variant.readers)


def test_each_media_type_has_one_packing_in_all_rows() -> None:
    for variant in VARIANTS:
        for media_type in variant.layer_types:
            assert PACKING[media_type] is variant.packing
    assert set(PACKING.values()) == set(Packing)


def test_wasmer_reads_every_row_and_readers_are_known() -> None:
    for variant in VARIANTS:
        assert WASMER in variant.readers
        assert set(variant.readers) <= CONSUMERS.keys()
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize("media_type", sorted(PACKING))
@pytest.mark.parametrize("kind", [None, mediatypes.OCI_MANIFEST, mediatypes.DOCKER_MANIFEST])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_understood_layer_has_a_row_wherever_it_is(
    media_type: str, kind: str | None, count: int
) -> None:
    layers = (layer(media_type), *(layer(media_type, str(number)) for number in range(count - 1)))
    config = layer("application/x", "config")
    manifest = Manifest(schema_version=2, media_type=kind, config=config, layers=layers)
    assert media_type in variant_of(manifest, layers[0]).layer_types


def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text()
    assert table() in page, "run `make reference`"
    assert page == layouts_page.render(page), "run `make reference`"


def test_packings_are_those_that_the_reader_of_archives_takes() -> None:
    assert [packing.value for packing in Packing] == [archive.RAW, *archive.TAR_PACKINGS]


def test_projects_that_read_modules_are_named_as_they_name_themselves() -> None:
    """`wasmc inspect` prints them."""
    assert (CONSUMERS["kwctl"], CONSUMERS["wkg"]) == ("Kubewarden", "wasm-pkg-tools")
