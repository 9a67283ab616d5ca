"""ListenerTemplate over generated texts: filters before each router, and nothing else of the text changes."""

import json
import re
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autowasm.manifests import nodes
from autowasm.standalone.listeners import ListenerTemplate
from autowasm.standalone.template import expand, tree_of
from tests.unit.standalone.lds import LISTENER, envoyfilter

no_deadline = settings(deadline=None)
OURS = re.compile(r" *- name: default/\w+\r?\n|\{name: default/\w+\}, ")
MANAGER = "envoy.filters.network.http_connection_manager"
ODD = st.sampled_from(
    ["1.10", "22:22", "1_000", "0b11", "0x1F", "y", "~", ".inf", "1e3", "2021-10-27", "'y'", '"\\u00e9"', "é", "[a, 1.10]", "{k: 0o17}"]
)  # fmt: skip
COMMENTS = st.sampled_from(["", "  # why", "\t# a tab"])
ABOVE = st.lists(st.sampled_from(["# about the next", "#", ""]), max_size=2)


@st.composite
def own_filters(draw: st.DrawFn, indent: str) -> list[str]:
    """Items of a list of HTTP filters in block style, the router last."""
    lines: list[str] = []
    for number in range(draw(st.integers(0, 2))):
        lines += [f"{indent}{line}" if line else "" for line in draw(ABOVE)]
        lines += [f"{indent}- name: own{number}{draw(COMMENTS)}", f"{indent}  x: {draw(ODD)}"]
        if draw(st.booleans()):
            lines += [
                f"{indent}  code: |",
                f"{indent}    # not a comment",
                f"{indent}    - not an item",
                "",
            ]
    lines += [f"{indent}{line}" if line else "" for line in draw(ABOVE)]
    dash = draw(st.sampled_from(["- ", "-   ", f"-\n{indent}  # inside\n{indent}  "]))
    return [*lines, f"{indent}{dash}name: envoy.filters.http.router{draw(COMMENTS)}"]


@st.composite
def block_texts(draw: st.DrawFn) -> tuple[str, bool]:
    """A template in block style, and whether it is an LDS document already."""
    document = draw(st.booleans())
    lines = [
        draw(st.sampled_from(["# mine", "\ufeff# mine"])),
        *draw(st.sampled_from([[], ["---"]])),
    ]
    outer = "  " if document and draw(st.booleans()) else ""
    if document:
        lines += [f"version_info: {draw(ODD)}", "resources:"]
    for number in range(draw(st.integers(1, 2))):
        inner = f"{outer}  "
        lines += [
            f'{outer}- "@type": {LISTENER}{draw(COMMENTS)}',
            f"{inner}address: {{socket_address: {{address: 127.0.0.1, port_value: {draw(st.sampled_from(['9080', '0x2378', '9081']))}}}}}",
            f"{inner}name: l{number}",
            f"{inner}stat_prefix: {draw(ODD)}",
            f"{inner}filter_chains:",
            f"{inner}- filters:",
            f"{inner}  - name: {MANAGER}",
            f"{inner}    typed_config:",
        ]
        key = draw(
            st.sampled_from(
                ["http_filters:", "httpFilters:  # ours", f'"http_filters": &own{number}']
            )
        )
        if draw(st.booleans()):
            lines += [
                f"{inner}      {key}",
                *draw(own_filters(f"{inner}      " + " " * draw(st.integers(0, 3)))),
            ]
        else:
            flow = (
                f"[{{name: own, x: {draw(ODD)}}},\n{inner * 5} {{name: envoy.filters.http.router}}]"
            )
            lines.append(f"{inner}      {key.partition('  #')[0]} {flow}{draw(COMMENTS)}")
        lines.append(f"{inner}      last: {draw(ODD)}")
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return "\n".join([*lines, *draw(st.sampled_from([[], [""], ["# the end", ""]]))]).replace(
        "\n", end
    ), document


FILTERS = st.lists(
    st.builds(
        envoyfilter,
        st.sampled_from(["a", "y", "22"]),
        st.sampled_from([9080, 9081, 80]),
        priority=st.integers(-1, 1),
    ),
    max_size=3,
    unique_by=lambda each: each["metadata"]["name"],
)


def without_ours(node: Any) -> Any:
    if isinstance(node, list):
        return [without_ours(each) for each in node if not is_ours(each)]
    if isinstance(node, dict):
        return {key: without_ours(value) for key, value in node.items()}
    return node


def is_ours(node: Any) -> bool:
    return isinstance(node, dict) and str(node.get("name", "")).startswith("default/")


def meaning(text: str) -> Any:
    """Text, style of quoting and tags of every scalar: more details than any reader uses."""

    def plain(tree: Any) -> Any:
        if tree.pairs is not None:
            return {json.dumps(plain(key)): plain(value) for key, value in tree.pairs}
        if tree.items is not None:
            return [plain(item) for item in tree.items]
        return [tree.tag, tree.plain, tree.scalar]

    root, _ = nodes.first_document(text)
    assert root is not None
    return plain(expand(root))


@no_deadline
@given(block_texts(), FILTERS)
def test_a_text_keeps_every_line_and_gets_filters_between_them(
    made: tuple[str, bool], filters: list[dict[str, Any]]
) -> None:
    text, is_document = made
    template = ListenerTemplate(text)
    bare = template.inject([])
    assert bare == text if is_document else text.splitlines()[-1] in bare

    result = template.inject(filters)

    assert OURS.sub("", result) == bare
    data = yaml.load(result, Loader=yaml.CBaseLoader)
    assert without_ours(data) == yaml.load(bare, Loader=yaml.CBaseLoader)
    for listener in data["resources"]:
        port = int(listener["address"]["socket_address"]["port_value"], 0)
        (chain,) = listener["filter_chains"]
        config = chain["filters"][0]["typed_config"]
        names = [each["name"] for each in config.get("http_filters") or config["httpFilters"]]
        expected = [
            f"default/{each['metadata']['name']}"
            for each in sorted(
                filters, key=lambda one: (one["spec"]["priority"], one["metadata"]["name"])
            )
            if each["spec"]["configPatches"][0]["match"]["listener"]["portNumber"] == port
        ]
        assert names[len(names) - 1 - len(expected) :] == [*expected, "envoy.filters.http.router"]


@no_deadline
@given(ODD, ODD, FILTERS)
def test_a_list_that_two_listeners_share_is_distinguished_where_they_differ(
    one: str, two: str, filters: list[dict[str, Any]]
) -> None:
    """An anchor on the filters of 9080, an alias on those of 9081: a filter inserted at the anchor is at the alias, too."""
    listener = (
        f'- "@type": {LISTENER}\n  address: {{socket_address: {{port_value: PORT}}}}\n  stat_prefix: {one}\n'
        f"  filter_chains: [{{filters: [{{name: {MANAGER}, typed_config: {{http_filters: LIST}}}}]}}]\n"
    )
    shared = f"&own [{{name: own, x: {two}}}, {{name: envoy.filters.http.router}}]"
    text = "resources:\n" + listener.replace("PORT", "9080").replace("LIST", shared)
    text += listener.replace("PORT", "9081").replace("LIST", "*own")
    template = ListenerTemplate(text)
    assert template.inject([]) == text

    result = template.inject(filters)

    # Expanded to two copies, each listener has the filters that it would have alone.
    apart = ListenerTemplate(text.replace("*own", shared.removeprefix("&own ")))
    assert meaning(result) == meaning(apart.inject(filters))


@given(st.text(max_size=20), st.floats(allow_nan=False), st.integers())
def test_data_is_a_tree(text: str, number: float, whole: int) -> None:
    tree = tree_of({"a": [text, number, whole, None, True]})
    assert tree.pairs is not None
    ((_, items),) = tree.pairs
    assert items.items is not None
    assert [each.scalar for each in items.items][:1] == [text]
    assert [each.plain for each in items.items][1:] == [True] * 4
