"""Manifests: for any input from a registry, the outcome is a manifest, an index, or a refusal in one line."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autowasm.digest import Digest
from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.registry import mediatypes
from autowasm.registry.consumers import ConsumerVerdict, LastLayer, answers, index_child
from autowasm.registry.layouts import CONSUMERS, PACKING, WASMER, choose_layout, variant_of
from autowasm.registry.manifest import (
    Descriptor,
    ImageIndex,
    Manifest,
    children_by_preference,
    parse_manifest,
)

OTHERS = CONSUMERS.keys() - {WASMER}
LIMITS = Limits(manifest_bytes=4096, image_layers=4, index_entries=4)

media_types = st.one_of(
    st.sampled_from(
        sorted(
            mediatypes.MANIFESTS
            | mediatypes.INDEXES
            | mediatypes.SCHEMA_1
            | PACKING.keys()
            | {mediatypes.WASM_CONFIG}
        )
    ),
    st.text(max_size=5),
)
odd = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.none(), max_size=1))
digests = st.one_of(st.binary(max_size=2).map(lambda data: str(Digest.of(data))), odd)
descriptors = st.fixed_dictionaries(
    {},
    optional={
        "mediaType": st.one_of(media_types, odd),
        "digest": digests,
        "size": st.one_of(st.integers(), odd),
        "platform": st.one_of(odd, st.dictionaries(st.sampled_from(["os", "architecture"]), odd)),
        "annotations": st.one_of(odd, st.dictionaries(st.text(max_size=3), odd, max_size=2)),
    },
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "schemaVersion": st.one_of(st.sampled_from([1, 2]), odd),
        "mediaType": st.one_of(media_types, odd),
        "config": st.one_of(descriptors, odd),
        "layers": st.one_of(st.lists(descriptors, max_size=6), odd),
        "manifests": st.one_of(st.lists(descriptors, max_size=6), odd),
    },
)


def read(data: bytes, content_type: str | None) -> None:
    try:
        document = parse_manifest(data, content_type, limits=LIMITS)
        if isinstance(document, ImageIndex):
            for consumer in OTHERS:
                assert isinstance(index_child(consumer, document), Descriptor | ConsumerVerdict)
            child = children_by_preference(document)[0]
            assert child.media_type in mediatypes.MANIFESTS
        else:
            assert isinstance(document, Manifest)
            for last in (None, LastLayer(is_gzip=True, plugin=True)):
                for answer in answers(document, last).values():
                    assert answer.reads is not bool(answer.why)
                    assert "\n" not in answer.why
            layout = choose_layout(document, limits=LIMITS)
            assert 0 < len(layout.candidates) <= LIMITS.image_layers
            child = layout.candidates[0].descriptor
            assert child.media_type in variant_of(document, child).layer_types
        assert child.size >= 0
        assert str(child.digest) == child.digest_text
    except ContentRejected as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 3000


@given(documents, st.one_of(st.none(), media_types))
def test_any_document_is_read_or_refused(document: Any, content_type: str | None) -> None:
    read(json.dumps(document).encode(), content_type)


@given(st.binary(), st.one_of(st.none(), media_types))
def test_any_bytes_are_read_or_refused(data: bytes, content_type: str | None) -> None:
    read(data, content_type)
