"""Docker config keys: every spelling of a host finds its login, no other host's ever does."""

import base64
import contextlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autowasm.errors import SpecError
from autowasm.registry.credentials import Credential, from_docker_config

label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
hosts = st.builds(
    lambda labels, port: ".".join(labels) + port,
    st.lists(label, min_size=2, max_size=3),
    st.sampled_from(["", ":5000", ":80"]),
).filter(lambda host: "docker" not in host)
components = st.from_regex(r"[a-z0-9]{1,6}", fullmatch=True).filter(
    lambda part: part not in ("v1", "v2")
)
repositories = st.lists(components, min_size=1, max_size=4)
spellings = st.sampled_from(
    ["{}", "https://{}", "https://{}/", "https://{}/v1/", "https://{}/v2/", "{}/", "{}/v2", " {} "]
)
usernames = st.text(st.characters(exclude_characters=":", exclude_categories=["Cs"]), min_size=1)
passwords = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))


def entry(username: str, password: str, *, inline: bool) -> dict[str, str]:
    if inline:
        pair = f"{username}:{password}".encode()
        return {"auth": base64.b64encode(pair).decode()}
    return {"username": username, "password": password}


@given(
    host=hosts,
    repository=repositories,
    spelling=spellings,
    username=usernames,
    password=passwords,
    inline=st.booleans(),
    upper=st.booleans(),
)
def test_every_spelling_of_a_host_finds_its_login(
    host: str,
    repository: list[str],
    spelling: str,
    username: str,
    password: str,
    inline: bool,
    upper: bool,
) -> None:
    key = spelling.format(host.upper() if upper else host)
    document = {"auths": {key: entry(username, password, inline=inline)}}
    found = from_docker_config(
        json.dumps(document).encode(), host=host, repository="/".join(repository)
    )
    assert found == Credential(username, password)


@given(host=hosts, other=hosts, repository=repositories, spelling=spellings)
def test_another_hosts_login_is_never_used(
    host: str, other: str, repository: list[str], spelling: str
) -> None:
    if host == other:
        return
    document = {"auths": {spelling.format(other): entry("u", "p", inline=True)}}
    assert from_docker_config(document, host=host, repository="/".join(repository)) is None


@given(
    host=hosts,
    repository=repositories,
    depths=st.lists(st.integers(0, 4), unique=True, min_size=1),
    order=st.randoms(use_true_random=False),
)
def test_the_longest_path_wins_in_any_order(
    host: str, repository: list[str], depths: list[int], order: Any
) -> None:
    order.shuffle(depths)
    depths = [depth for depth in depths if depth <= len(repository)] or [0]
    auths = {
        "/".join([host, *repository[:depth]]): entry(str(depth), "p", inline=True)
        for depth in depths
    }
    found = from_docker_config({"auths": auths}, host=host, repository="/".join(repository))
    assert found == Credential(str(max(depths)), "p")


@given(document=st.one_of(st.binary(), st.text()))
def test_any_document_is_read_or_refused(document: bytes | str) -> None:
    with contextlib.suppress(SpecError):
        from_docker_config(document, host="r.example", repository="a")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(value=json_values)
def test_any_entry_is_read_or_refused(value: Any) -> None:
    with contextlib.suppress(SpecError):
        from_docker_config({"auths": {"r.example": value}}, host="r.example", repository="a")
