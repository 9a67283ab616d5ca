"""parse() and render() over anything: a SpecError with a path, or an EnvoyFilter with the same bytes each time."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autowasm.api import patches, pluginconfig, validation
from autowasm.api.envoyfilter import render
from autowasm.errors import SpecError
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import document, record

KEYS = st.sampled_from(
    ["filter", "selector", "secret", "source", "registry", "object", "image", "url", "applyPorts", "rootID", "vmID",
     "sha256", "pluginConfig", "env", "name", "value", "failStrategy", "context", "position",
     "allowOnHeadersStopIteration", "priority", "matchLabels", "other"]
)  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("FAIL_OPEN")
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
NUMBERS = st.one_of(
    st.integers(min_value=-(2**53), max_value=2**53),
    st.floats(allow_nan=False, allow_infinity=False),
)
TEXTS = st.text(max_size=10)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=10,
)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "applyPorts": st.lists(
            st.integers(min_value=1, max_value=65535), min_size=1, max_size=3, unique=True
        ),
        "pluginConfig": st.one_of(TEXTS, st.dictionaries(TEXTS, JSON, max_size=3)),
        "env": st.lists(
            st.fixed_dictionaries(
                {"name": st.from_regex(r"[A-Z_]{1,5}", fullmatch=True), "value": TEXTS}
            ),
            max_size=3,
            unique_by=lambda variable: variable["name"],
        ),
        "failStrategy": st.sampled_from(["FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD"]),
        "context": st.sampled_from(["SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY"]),
        "position": st.sampled_from(["First", "BeforeRouter"]),
        "allowOnHeadersStopIteration": st.booleans(),
        "priority": st.integers(min_value=-(2**31), max_value=2**31 - 1),
    },
)


@given(ANYTHING)
def test_any_spec_is_read_or_refused_with_a_path(spec: Any) -> None:
    try:
        validation.parse({**document(), "spec": spec})
    except SpecError as error:
        refusal = error
    else:
        return
    assert refusal.field.partition(".")[0] == "spec"
    assert refusal.problem


@given(FILTERS, st.randoms())
def test_equal_input_renders_equal_bytes(filter_: dict[str, Any], random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, list):
            return [shuffled(item) for item in value]
        if not isinstance(value, dict):
            return value
        names = list(value)
        random.shuffle(names)
        # The order within pluginConfig is the user's, and the filter gets it.
        return {
            name: value[name] if name == "pluginConfig" else shuffled(value[name]) for name in names
        }

    one = document(**filter_)
    texts = [
        json.dumps(render(validation.parse(each), record(), EnvoyFetch()))
        for each in (one, shuffled(one))
    ]
    assert texts[0] == texts[1]
    assert texts[0] == json.dumps(json.loads(texts[0]), sort_keys=True)


@given(st.dictionaries(TEXTS, JSON, max_size=3))
def test_filter_gets_json_that_means_the_object_with_its_keys_in_order(config: Any) -> None:
    autowasm = validation.parse(document(pluginConfig=config))
    rendered = render(autowasm, record(), EnvoyFetch())
    texts = {
        filter_["typedConfig"]["value"]["config"]["configuration"]["value"]
        for filter_ in patches.filters_of(rendered)
        if filter_["name"] == patches.FILTER
    }
    (text,) = texts
    assert json.loads(text) == config
    assert list(json.loads(text)) == list(config)


@given(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_of_a_configuration_keep_their_value_and_integers_their_digits(
    whole: int, fraction: float
) -> None:
    text = pluginconfig.as_text({"whole": whole, "fraction": fraction})
    assert json.loads(text) == {"whole": whole, "fraction": fraction}
    assert f'"whole":{whole},' in text
