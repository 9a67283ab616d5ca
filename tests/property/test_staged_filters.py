"""EnvoyFilters with two variants, for any variants and proxies: what is rendered is read back, and survives the API server's JSON."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autowasm.api.envoyfilter import Variant, digests_of, records_of
from autowasm.api.patches import Metadata
from autowasm.api.staged import Variants, render, variants_of
from autowasm.api.v1alpha1 import FailStrategy, PatchContext, Position
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import autowasm, record

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
PORTS = st.none() | st.lists(
    st.sampled_from([80, 9080, 9081, 15008]), min_size=1, max_size=3, unique=True
).map(tuple)


@st.composite
def variants(draw: st.DrawFn) -> Variant:
    sha256 = draw(st.sampled_from("ab")) * 64
    source = record(sha256=sha256, manifest=draw(st.sampled_from("12")) * 64)
    return Variant(
        sha256=source.sha256,
        vm_id=draw(TEXT),
        root_id=draw(st.none() | TEXT),
        configuration=draw(st.none() | TEXT),
        env=tuple(sorted(draw(st.dictionaries(TEXT, TEXT, max_size=2)).items())),
        fail_strategy=draw(st.sampled_from(FailStrategy)),
        context=draw(st.sampled_from(PatchContext)),
        ports=draw(PORTS),
        position=draw(st.sampled_from(Position)),
        allow_on_headers_stop_iteration=draw(st.booleans()),
        record=source,
        resend=draw(st.integers(0, 3)),
    )


PROXIES: st.SearchStrategy[list[Metadata] | None] = st.none() | st.lists(
    st.fixed_dictionaries({"NAME": st.from_regex(r"[a-z]{1,4}", fullmatch=True)}),
    min_size=1,
    max_size=3,
)


def as_stored(document: dict[str, Any]) -> dict[str, Any]:
    """As the API server returns it: keys sorted."""
    result: dict[str, Any] = json.loads(json.dumps(document, sort_keys=True))
    return result


@given(variants(), variants(), PROXIES)
def test_both_variants_and_their_records_are_read_back(
    stable: Variant, target: Variant, proxies: list[Metadata] | None
) -> None:
    document = render(autowasm(), EnvoyFetch(), stable=stable, target=target, proxies=proxies)
    found = variants_of(as_stored(document))
    assert found.base == stable
    assert found.override is not None
    # Where both are for the same listeners, the order of the ports is that of the patches.
    assert found.override.digest == target.digest
    assert found.override.record == target.record
    assert set(digests_of(document)) == {stable.sha256, target.sha256}
    assert set(records_of(document)) == {stable.record, target.record}
    again = render(
        autowasm(), EnvoyFetch(), stable=found.base, target=found.override, proxies=proxies
    )
    assert json.dumps(again) == json.dumps(document)


@given(variants(), PROXIES)
def test_first_introduction_is_read_back(variant: Variant, proxies: list[Metadata] | None) -> None:
    document = render(autowasm(), EnvoyFetch(), stable=None, target=variant, proxies=proxies)
    found = variants_of(as_stored(document))
    # For all, a first introduction and the filter after it have the same patches.
    assert found == (Variants(override=variant) if proxies is not None else Variants(base=variant))
    assert records_of(document) == (variant.record,)


@given(variants())
def test_single_variant_is_read_back(variant: Variant) -> None:
    document = render(autowasm(), EnvoyFetch(), stable=variant, target=None)
    assert variants_of(as_stored(document)) == Variants(base=variant)


@given(variants(), variants())
def test_equal_digests_are_equal_filters(one: Variant, other: Variant) -> None:
    def seen(variant: Variant) -> str:
        document = render(autowasm(), EnvoyFetch(), stable=variant, target=None)
        text = json.dumps(document["spec"]["configPatches"], sort_keys=True)
        return text.replace(f"?r={variant.resend}", "").replace(variant.digest, "")

    if one.digest == other.digest and one.ports == other.ports:
        assert seen(one) == seen(other)
    elif one.digest != other.digest:
        assert seen(one) != seen(other)
