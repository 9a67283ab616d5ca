"""Invalid AutoWasms: one row for each error, and the part that reports it.

Not the texts of `validation` alone: the API server validates first. Invariant: each row is refused by the API server with
`sentence`, or, where that is None, is let through by it; and each is refused by `validation.parse` at `field`, or, where that
is None, the limit is the cluster's alone.
"""

from dataclasses import dataclass
from typing import Any

from tests.manifests.documents import (
    Document,
    changed,
    image,
    labels,
    url,
    with_filter,
    with_source,
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One wrong AutoWasm."""

    name: str
    document: Document
    field: str | None
    """The path that `validation.parse` names."""
    sentence: str | None
    """A part of the API server's message."""


_HEX = "0123456789abcdef" * 4
_FILTER = "spec.filter"
_IMAGE = "spec.filter.source.registry.image"
_URL = "spec.filter.source.object.url"
_LABELS = "spec.selector.matchLabels"
_NOT_AN_IMAGE = "not an image; want host/name:tag or host/name@sha256:digest"
_ONE_SOURCE = "set exactly one of registry and object"
_LABEL_VALUE = "not a label value: letters, digits, '-', '_' and '.'"
_LABEL_KEY = "not a label key: want name or dns-prefix/name"
_SHORT = "must be at least 30s, because registries limit the rate of requests"
_STEPS = "spec.rollout.steps"
_both = {"registry": {"image": "a/b"}, "object": {"url": "http://a/b"}}


def _rollout(**fields: Any) -> Document:
    return changed(lambda spec: spec.update(rollout=fields))


REFUSALS = (
    # Required fields.
    Refusal("no spec", changed(lambda s: s.clear()), "spec.filter", "spec.filter: Required value"),
    Refusal("no filter", changed(lambda s: s.pop("filter")), "spec.filter", "spec.filter: Required"),
    Refusal("no selector", changed(lambda s: s.pop("selector")), "spec.selector", "spec.selector: Required"),
    Refusal("empty selector", changed(lambda s: s.update(selector={})), _LABELS, f"{_LABELS}: Required value"),
    Refusal("labels null", labels(None), _LABELS, f"{_LABELS}: Required value"),
    Refusal("no source", changed(lambda s: s["filter"].pop("source")), f"{_FILTER}.source", "source: Required"),
    # Exactly one source.
    Refusal("empty source", with_source(), f"{_FILTER}.source", _ONE_SOURCE),
    Refusal("two sources", with_source(**_both), f"{_FILTER}.source", _ONE_SOURCE),
    Refusal("registry without image", with_source(registry={}), _IMAGE, f"{_IMAGE}: Required value"),
    Refusal("object without url", with_source(object={}), _URL, f"{_URL}: Required value"),
    # Spelling.
    Refusal("misspelt", with_filter(applyPort=[1]), f"{_FILTER}.applyPort", 'unknown field "spec.filter.applyPort"'),
    Refusal("rootId", with_filter(rootId="x"), f"{_FILTER}.rootId", 'unknown field "spec.filter.rootId"'),
    Refusal("unknown in spec", changed(lambda s: s.update(secrets="x")), "spec.secrets", 'unknown field "spec.secrets"'),
    Refusal("git source", with_source(git={}), f"{_FILTER}.source.git", 'unknown field "spec.filter.source.git"'),
    # Types.
    Refusal("image a number", image(1), _IMAGE, f'{_IMAGE}: Invalid value: "integer"'),  # type: ignore[arg-type]
    Refusal("port a string", with_filter(applyPorts=["9080"]), f"{_FILTER}.applyPorts[0]", "applyPorts[0]: Invalid value"),
    Refusal("ports a number", with_filter(applyPorts=9080), f"{_FILTER}.applyPorts", "must be of type array"),
    Refusal("port broken", with_filter(applyPorts=[1.5]), f"{_FILTER}.applyPorts[0]", "must be of type integer"),
    Refusal("label a number", labels({"app": 1}), f"{_LABELS}[app]", f"{_LABELS}.app: Invalid value"),
    Refusal("env a map", with_filter(env={"A": "b"}), f"{_FILTER}.env", 'unknown field "spec.filter.env.A"'),
    # Images.
    Refusal("image with scheme", image("https://a.io/b:v1"), _IMAGE, "write the image without a scheme, host/name:tag"),
    Refusal("image with oci", image("oci://a.io/b:v1"), _IMAGE, "write the image without a scheme, host/name:tag"),
    Refusal("image empty", image(""), _IMAGE, _NOT_AN_IMAGE),
    Refusal("image upper case", image("a.io/Team/x:v1"), _IMAGE, _NOT_AN_IMAGE),
    Refusal("image no name", image("a.io/:v1"), _IMAGE, _NOT_AN_IMAGE),
    Refusal("image empty tag", image("a.io/b:"), _IMAGE, _NOT_AN_IMAGE),
    Refusal("image long tag", image("a.io/b:" + "t" * 129), _IMAGE, _NOT_AN_IMAGE),
    Refusal("image short digest", image("a.io/b@sha256:abc"), _IMAGE, _NOT_AN_IMAGE),
    Refusal("image upper digest", image(f"a.io/b@sha256:{_HEX.upper()}"), _IMAGE, _NOT_AN_IMAGE),
    Refusal("image md5", image("a.io/b@md5:" + "a" * 32), _IMAGE, _NOT_AN_IMAGE),
    Refusal("image climbing", image("a.io/../b:v1"), _IMAGE, _NOT_AN_IMAGE),
    Refusal("image with newline", image("a.io/b:v1\n"), _IMAGE, _NOT_AN_IMAGE),
    Refusal("image with blank", image(" a.io/b:v1"), _IMAGE, _NOT_AN_IMAGE),
    Refusal("image too long", image("a.io/" + "b" * 700), _IMAGE, "may not be more than 600"),
    Refusal("image name too long", image("a.io/" + "b" * 300), _IMAGE, None),
    Refusal("image host odd", image("a_b.io/x/y:v1"), _IMAGE, None),
    # URLs.
    Refusal("url ftp", url("ftp://a.io/b"), _URL, "must begin with http:// or https://"),
    Refusal("url without scheme", url("a.io/b.wasm"), _URL, "must begin with http:// or https://"),
    Refusal("url without host", url("https:///b.wasm"), _URL, "has no host"),
    Refusal("url with password", url("https://u:p@a.io/b"), _URL, "must not contain a user name or password"),
    Refusal("url with user", url("https://u@a.io/b"), _URL, "must not contain a user name or password"),
    Refusal("url with fragment", url("https://a.io/b#c"), _URL, "must not have a fragment (#...)"),
    Refusal("url with blank", url("https://a.io/b c"), _URL, "must be percent-encoded"),
    Refusal("url with newline", url("https://a.io/b\nc"), _URL, "must be percent-encoded"),
    Refusal("url with backslash", url("https://a.io\\b"), _URL, "must be percent-encoded"),
    Refusal("url too long", url("https://a.io/" + "b" * 2048), _URL, "may not be more than 2048"),
    Refusal("url with odd port", url("https://a.io:99999/b"), _URL, None),
    # Ports.
    Refusal("no port", with_filter(applyPorts=[]), f"{_FILTER}.applyPorts", "should have at least 1 items"),
    Refusal("port 0", with_filter(applyPorts=[0]), f"{_FILTER}.applyPorts[0]", "greater than or equal to 1"),
    Refusal("port 65536", with_filter(applyPorts=[80, 65536]), f"{_FILTER}.applyPorts[1]", "less than or equal to 65535"),
    Refusal("port twice", with_filter(applyPorts=[80, 80]), f"{_FILTER}.applyPorts[1]", "applyPorts[1]: Duplicate value: 80"),
    Refusal("101 ports", with_filter(applyPorts=[*range(1, 102)]), f"{_FILTER}.applyPorts", "must have at most 100 items"),
    # Ids, digest, environment.
    Refusal("rootID long", with_filter(rootID="x" * 257), f"{_FILTER}.rootID", "may not be more than 256"),
    Refusal("vmID with newline", with_filter(vmID="a\nb"), f"{_FILTER}.vmID", "must not contain control characters"),
    Refusal("sha256 short", with_filter(sha256="abc"), f"{_FILTER}.sha256", "must be 64 lower-case hexadecimal digits"),
    Refusal("sha256 upper", with_filter(sha256=_HEX.upper()), f"{_FILTER}.sha256", "must be 64 lower-case hexadecimal digits"),
    Refusal("sha256 prefix", with_filter(sha256=f"sha256:{_HEX}"), f"{_FILTER}.sha256", "without a sha256 prefix"),
    Refusal("env no name", with_filter(env=[{"value": "x"}]), f"{_FILTER}.env[0].name", "env[0].name: Required value"),
    Refusal("env empty name", with_filter(env=[{"name": ""}]), f"{_FILTER}.env[0].name", "should be at least 1 chars long"),
    Refusal("env with =", with_filter(env=[{"name": "a=b"}]), f"{_FILTER}.env[0].name", "must not contain '=' or control characters"),
    Refusal("env long name", with_filter(env=[{"name": "x" * 257}]), f"{_FILTER}.env[0].name", "may not be more than 256"),
    Refusal("env long value", with_filter(env=[{"name": "x", "value": "x" * 2049}]), f"{_FILTER}.env[0].value", "2048"),
    Refusal("env twice", with_filter(env=[{"name": "x"}, {"name": "x"}]), f"{_FILTER}.env[1].name", "env[1]: Duplicate value"),
    Refusal("env 257", with_filter(env=[{"name": f"x{n}"} for n in range(257)]), f"{_FILTER}.env", "at most 256 items"),
    # Choices and numbers.
    Refusal("failStrategy", with_filter(failStrategy="OPEN"), f"{_FILTER}.failStrategy", '"FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD"'),
    Refusal("context", with_filter(context="ANY"), f"{_FILTER}.context", '"SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY"'),
    Refusal("position", with_filter(position="Last"), f"{_FILTER}.position", '"BeforeRouter", "First"'),
    Refusal("stop iteration", with_filter(allowOnHeadersStopIteration="true"), f"{_FILTER}.allowOnHeadersStopIteration", "must be of type boolean"),
    Refusal("pullPolicy", with_filter(pullPolicy="Never"), f"{_FILTER}.pullPolicy", '"IfNotPresent", "Always"'),
    Refusal("priority", with_filter(priority=2**31), f"{_FILTER}.priority", "less than or equal to 2147483647"),
    Refusal("priority low", with_filter(priority=-(2**31) - 1), f"{_FILTER}.priority", "greater than or equal to -2147483648"),
    # Intervals.
    Refusal("interval no unit", with_filter(refreshInterval="30"), f"{_FILTER}.refreshInterval", "not a duration; want 30s"),
    Refusal("interval words", with_filter(refreshInterval="daily"), f"{_FILTER}.refreshInterval", "not a duration; want 30s"),
    Refusal("interval empty", with_filter(refreshInterval=""), f"{_FILTER}.refreshInterval", "not a duration; want 30s"),
    Refusal("interval short", with_filter(refreshInterval="29.9s"), f"{_FILTER}.refreshInterval", _SHORT),
    Refusal("interval ms", with_filter(refreshInterval="500ms"), f"{_FILTER}.refreshInterval", _SHORT),
    Refusal("interval 0", with_filter(refreshInterval="0s"), f"{_FILTER}.refreshInterval", _SHORT),
    Refusal("interval short in m", with_filter(refreshInterval="0.1m"), f"{_FILTER}.refreshInterval", None),
    # Secret and labels.
    Refusal("secret empty", changed(lambda s: s.update(secret="")), "spec.secret", "must be the name of a Secret"),
    Refusal("secret elsewhere", changed(lambda s: s.update(secret="a/b")), "spec.secret", "without the namespace"),
    Refusal("secret long", changed(lambda s: s.update(secret="a" * 254)), "spec.secret", "may not be more than 253"),
    Refusal("label value", labels({"app": "a b"}), f"{_LABELS}[app]", _LABEL_VALUE),
    Refusal("label wildcard", labels({"app": "*"}), f"{_LABELS}[app]", _LABEL_VALUE),
    Refusal("label value long", labels({"app": "a" * 64}), f"{_LABELS}[app]", "may not be more than 63"),
    Refusal("label key", labels({"a b": "x"}), f"{_LABELS}[a b]", _LABEL_KEY),
    Refusal("label key empty", labels({"": "x"}), f"{_LABELS}[]", _LABEL_KEY),
    Refusal("label prefix empty", labels({"/a": "x"}), f"{_LABELS}[/a]", _LABEL_KEY),
    Refusal("label prefix odd", labels({"A_/a": "x"}), f"{_LABELS}[A_/a]", None),
    Refusal("257 labels", labels({f"l{n}": "x" for n in range(257)}), _LABELS, "must have at most 256 items"),
    # Rollouts.
    Refusal("steps empty", _rollout(steps=[]), _STEPS, "should have at least 1 items"),
    Refusal("21 steps", _rollout(steps=[*range(1, 22)]), _STEPS, "must have at most 20 items"),
    Refusal("step 0", _rollout(steps=[0]), f"{_STEPS}[0]", "greater than or equal to 1"),
    Refusal("step too large", _rollout(steps=[1000001]), f"{_STEPS}[0]", "less than or equal to 1000000"),
    Refusal("step a text", _rollout(steps=["all"]), f"{_STEPS}[0]", "must be a count, or a percentage from 1% to 100%"),
    Refusal("step 0%", _rollout(steps=["0%"]), f"{_STEPS}[0]", "must be a count, or a percentage from 1% to 100%"),
    Refusal("step 101%", _rollout(steps=["101%"]), f"{_STEPS}[0]", "must be a count, or a percentage from 1% to 100%"),
    Refusal("step long", _rollout(steps=["1000%"]), f"{_STEPS}[0]", "may not be more than 4"),
    Refusal("step broken", _rollout(steps=[1.5]), f"{_STEPS}[0]", "must be of type integer"),
    Refusal("steps fall", _rollout(steps=[5, 4]), f"{_STEPS}[1]", None),
    Refusal("pause no unit", _rollout(pause="30"), "spec.rollout.pause", "not a duration; want 30s"),
    Refusal("pause short", _rollout(pause="999ms"), "spec.rollout.pause", "must be at least 1s"),
    Refusal("deadline short", _rollout(deadline="0.5s"), "spec.rollout.deadline", "must be at least 1s"),
    Refusal("ratio high", _rollout(maxFailureRatio=1.5), "spec.rollout.maxFailureRatio", "less than or equal to 1"),
    Refusal("ratio low", _rollout(maxFailureRatio=-1), "spec.rollout.maxFailureRatio", "greater than or equal to 0"),
    Refusal("onUnknown", _rollout(onUnknown="Stop"), "spec.rollout.onUnknown", '"Wait", "Continue"'),
    Refusal("rollout misspelt", _rollout(step=[1]), "spec.rollout.step", 'unknown field "spec.rollout.step"'),
    # Rules that a schema cannot express.
    Refusal("config a number", with_filter(pluginConfig=1), f"{_FILTER}.pluginConfig", None),
    Refusal("config a list", with_filter(pluginConfig=[1]), f"{_FILTER}.pluginConfig", None),
    Refusal("config true", with_filter(pluginConfig=True), f"{_FILTER}.pluginConfig", None),
)  # fmt: skip
