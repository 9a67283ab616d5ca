"""Property: the API server accepts every object that `validation.parse` accepts, and parse reports every error that the API server accepts.

The API server itself is the oracle for the schema, so patterns mean what Go's regular expressions mean.
"""

import datetime
import string
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from autowasm.api import validation
from autowasm.errors import SpecError
from tests.manifests import documents
from tests.manifests.api import Judge
from tests.parts.kubernetes import Cluster

pytestmark = pytest.mark.timeout(1800)

_ODD = st.text(max_size=12)
_HEX = st.text("0123456789abcdef", min_size=62, max_size=65)


def _pieces(*pieces: str, most: int = 8) -> st.SearchStrategy[str]:
    """Texts that are nearly right."""
    return st.lists(st.sampled_from(pieces), max_size=most).map("".join)


_IMAGE = st.one_of(
    _pieces(
        "a",
        "b0",
        ".",
        "-",
        "__",
        "_",
        "/",
        ":",
        "@",
        "5000",
        "V1",
        "localhost",
        "[::1]",
        "é",
        "\n",
        most=10,
    ),
    st.builds("{}@sha256:{}".format, _pieces("a", "/", ".io", ":1"), _HEX),
    _ODD,
)
_URL = st.one_of(
    st.builds(
        "{}{}".format,
        st.sampled_from(["http://", "https://", "HTTPS://", "ftp://", "//", ""]),
        _pieces(
            "a",
            ".io",
            "/",
            "?",
            "#",
            "@",
            ":",
            "80",
            "[::1]",
            "%20",
            " ",
            "\\",
            "é",
            "\x7f",
            "\u00a0",
        ),
    ),
    _ODD,
)
_DURATION = st.one_of(
    _pieces("1", "30", ".5", ".", "ms", "s", "m", "h", "d", "0", " ", "-", most=6), _ODD
)
_NAME = _pieces("a", "B", "0", "-", ".", "_", "/", "é", "\n", "*", most=6)
_LABELS = st.dictionaries(
    st.one_of(_NAME, _pieces("app.io", "/", "name", "A_", most=3)),
    st.one_of(_NAME, st.text(string.ascii_letters, min_size=60, max_size=66)),
    max_size=4,
)
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**54), 2**54) | st.floats(-1e9, 1e9) | _ODD,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(_ODD, children, max_size=3),
    max_leaves=6,
)
_ENV = st.fixed_dictionaries(
    {"name": _pieces("A", "=", "é", "\x01", most=3)}, optional={"value": _ODD}
)
_SOURCE = st.fixed_dictionaries(
    {},
    optional={
        "registry": st.fixed_dictionaries({"image": _IMAGE}),
        "object": st.fixed_dictionaries({"url": _URL}),
    },
)
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "source": _SOURCE,
    "sha256": _HEX | _ODD,
    "applyPorts": st.lists(st.sampled_from([0, 1, 80, 65535, 65536, -1, 80.0, 80.5]), max_size=4)
    | st.none(),
    "rootID": _ODD,
    "vmID": _ODD | st.none(),
    "pluginConfig": _JSON,
    "env": st.lists(_ENV, max_size=3),
    "failStrategy": st.sampled_from(["FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD", "fail_open", ""]),
    "context": st.sampled_from(["SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY", "ANY"]),
    "position": st.sampled_from(["First", "BeforeRouter", "Last", ""]),
    "allowOnHeadersStopIteration": st.sampled_from([True, False, None, "true", 1]),
    "priority": st.integers(-(2**31) - 1, 2**31),
    "pullPolicy": st.sampled_from(["IfNotPresent", "Always", "Never"]),
    "refreshInterval": _DURATION,
}


_ROLLOUT = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.lists(
            st.integers(-1, 12)
            | st.integers(0, 102).map("{}%".format)
            | st.sampled_from([1.0, 1.5, 1_000_001])
            | _ODD,
            max_size=4,
        ),
        "pause": _DURATION,
        "deadline": _DURATION,
        "maxFailureRatio": st.floats(-0.1, 1.1) | st.integers(-1, 2),
        "onUnknown": st.sampled_from(["Wait", "Continue", "wait"]),
    },
)


@st.composite
def _autowasms(draw: st.DrawFn) -> documents.Document:
    """A valid AutoWasm with one or two fields drawn: more would be wrong somewhere nearly always."""
    document = documents.valid()
    for name in draw(
        st.lists(st.sampled_from([*_FIELDS, "secret", "labels", "rollout"]), min_size=1, max_size=2)
    ):
        if name == "secret":
            document["spec"]["secret"] = draw(_NAME | st.none())
        elif name == "rollout":
            document["spec"]["rollout"] = draw(_ROLLOUT)
        elif name == "labels":
            document["spec"]["selector"]["matchLabels"] = draw(_LABELS)
        else:
            document["spec"]["filter"][name] = draw(_FIELDS[name])
    return document


@pytest.fixture(scope="module")
def judge(cluster: Cluster) -> Iterator[Judge]:
    with Judge(cluster) as judge:
        yield judge


@settings(
    max_examples=500,
    deadline=datetime.timedelta(seconds=10),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(document=_autowasms())
def test_schema_accepts_every_document_that_parsing_accepts(
    document: documents.Document, judge: Judge
) -> None:
    refused = _refusal_by_parsing(document)
    if refused is None:
        event("both have to accept")
        assert judge.refusal(document) is None
    else:
        assert refused.field.startswith("spec."), "a refusal without a place helps nobody"


def _refusal_by_parsing(document: documents.Document) -> SpecError | None:
    try:
        validation.parse(document)
    except SpecError as error:
        return error
    return None
