"""SourcePolicy against a plain reading of its own rules, and invariants of every policy."""

import contextlib
import fnmatch

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from autowasm.controller.sourcepolicy import Rule, SourcePolicy
from autowasm.errors import SpecError, UsageError
from tests.fakes.autowasms import autowasm, digest

HOSTS = ["a.example", "b.example", "x.a.example", "a.example:5000"]
PREFIXES = ["", "/team", "/team/sub", "/te"]
entries = st.builds(
    "{}{}".format, st.sampled_from([*HOSTS, "*.a.example"]), st.sampled_from(PREFIXES)
)
lists = st.none() | st.lists(entries, max_size=3).map(tuple)
hosts = st.none() | st.lists(st.sampled_from(HOSTS), max_size=2).map(tuple)
rules = st.builds(Rule, registries=lists, objects=hosts, digest_required=st.booleans())
names = st.sampled_from(["ab", "abc", "a*", "ab*", "*", "*c", "b?"])
policies = st.dictionaries(names, rules, max_size=5).map(
    lambda rules: SourcePolicy(tuple(rules.items()))
)
images = st.builds(
    "{}/{}{}".format,
    st.sampled_from(HOSTS),
    st.sampled_from(["team", "team/sub", "team/sub/x", "teams", "other"]),
    st.sampled_from([":v1", f"@sha256:{digest('a')}"]),
)
namespaces = st.sampled_from(["ab", "abc", "bc", "zz"])


def allows(policy: SourcePolicy, namespace: str, image: str) -> bool:
    try:
        policy.check(autowasm(namespace=namespace, image=image))
    except SpecError as error:
        refusal = error
    else:
        return True
    assert refusal.reason == "PolicyDenied"
    found = policy.rule_for(namespace)
    assert (repr(found[0]) if found else "no rule") in str(refusal)
    return False


@given(policies, namespaces, images)
def test_agrees_with_a_plain_reading(policy: SourcePolicy, namespace: str, image: str) -> None:
    by_name = dict(policy.rules)
    fitting = [name for name in by_name if fnmatch.fnmatchcase(namespace, name)]
    best = namespace if namespace in by_name else None
    if best is None and fitting:
        best = min(fitting, key=lambda name: (-len(name.strip("*?")), name))
    expected = False
    if best is not None:
        rule = by_name[best]
        path = image.partition("@")[0].removesuffix(":v1").split("/")
        host = path[0]
        listed = rule.registries is None
        for entry in rule.registries or ():
            wanted, *prefix = entry.split("/")
            same = wanted in {host, host.partition(":")[0]}
            below = wanted.startswith("*") and host.endswith(wanted[1:])
            listed |= (same or below) and path[1 : 1 + len(prefix)] == prefix
        expected = listed and ("@" in image or not rule.digest_required)
    assert allows(policy, namespace, image) is expected


@given(policies, namespaces, images, st.data())
def test_taking_an_entry_away_never_allows_more(
    policy: SourcePolicy, namespace: str, image: str, data: st.DataObject
) -> None:
    found = policy.rule_for(namespace)
    if found is None or not found[1].registries:
        return
    name, rule = found
    gone = data.draw(st.sampled_from(rule.registries or ("",)))
    less = msgspec.structs.replace(
        rule, registries=tuple(entry for entry in rule.registries or () if entry != gone)
    )
    stricter = SourcePolicy(tuple((n, less if n == name else r) for n, r in policy.rules))
    assert allows(policy, namespace, image) or not allows(stricter, namespace, image)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_a_policy_or_a_usage_error(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(SourcePolicy.parse(data), SourcePolicy)
