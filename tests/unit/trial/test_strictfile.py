"""A suite is read strictly: what is wrong, on which line, in which field."""

import pytest

from autowasm.errors import UsageError
from autowasm.trial.strictfile import Lines, read
from autowasm.trial.suite import SUITE, Suite

HEAD = "cases:\n- name: a\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("a: [", "line 2, column 1"),
        (f"{HEAD}---\nb: 1\n", "more than one document"),
        ("cases:\n- name: a\n  name: b\n", "line 3, column 3: duplicate key; remove one"),
        ("defaults: {}\n", "line 1: cases: is required"),
        ("cases: []\n", "line 1: cases: must not be empty"),
        ("[]", "line 1: the document: must be a mapping, not a list"),
        (
            f"{HEAD}  headrs: {{}}\n",
            "line 3: cases[0].headrs: unknown field; the fields here are module, config, ",
        ),
        (
            f"{HEAD}  expect: {{status: 200}}\n",
            "line 3: cases[0].expect.status: unknown field; it belongs in response",
        ),
        (
            f"module: a.wasm\n{HEAD}",
            "line 1: module: unknown field; it belongs in defaults or cases",
        ),
        (
            f"{HEAD}  request: {{headres: {{}}}}\n",
            "line 3: cases[0].request.headres: unknown field; did you mean headers?",
        ),
        ("cases:\n- name: a\n  {{ .b }}: c\n", "line 3, column 3: a key must be text"),
        ("cases:\n- request: {}\n", "line 2: cases[0].name: is required"),
        (
            f"{HEAD}  request:\n    headers:\n      x-a: b\n      x-n: 1\n",
            "line 6: cases[0].request.headers.x-n: must be text or a list, not a whole number; put it in quotes",
        ),
        (
            f"{HEAD}  request:\n    headers: {{x-n: yes}}\n",
            "line 4: cases[0].request.headers.x-n: must be text or a list, not true or false; put it in quotes",
        ),
        (
            f"{HEAD}  expect:\n    response:\n      status: '200'\n",
            "line 5: cases[0].expect.response.status: must be a whole number, not text",
        ),
        (
            f"{HEAD}  expect:\n    response:\n      body: {{regex: '('}}\n",
            "line 5: cases[0].expect.response.body: regex: missing ), unterminated subpattern",
        ),
        (
            f"{HEAD}  expect: {{response: {{body: {{regex: a, contains: b}}}}}}\n",
            "line 3: cases[0].expect.response.body: set exactly one of",
        ),
        (f"{HEAD}  start: Maybe\n", "line 3: cases[0].start: invalid enum value 'Maybe'"),
        (
            f"{HEAD}  start: Refused\n  expect: {{}}\n",
            "line 2: cases[0]: a filter that is refused gets no request",
        ),
        (
            f"{HEAD}  steps: [{{}}]\n  request: {{}}\n",
            "line 2: cases[0]: steps cannot be combined with request, upstream or expect",
        ),
        (f"{HEAD}- name: a\n", "two cases have the name 'a'"),
        (
            f"{HEAD}  callouts: {{auth: {{delay: soon}}}}\n",
            "line 3: cases[0].callouts: delay: not a duration",
        ),
        (f"envoyVersion: '1.2'\n{HEAD}", "the document: Envoy 1.36 is the oldest"),
        ('{"cases": [{"name": "a", "x": 1}]}', "line 1: cases[0].x: unknown field"),
    ],
)
def test_message_names_line_and_field(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text.encode(), SUITE, name="s.yaml")
    assert str(caught.value).startswith("s.yaml: ")
    assert message in str(caught.value)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(UsageError, match=r"s: line 2: byte 8 is not UTF-8"):
        read(b"a: 1\nb: \xff", SUITE, name="s")


def test_values_are_read_as_kubectl_reads_them() -> None:
    text = f"x: &config {{b: 0x10}}\n{HEAD}  config: *config\n".replace(
        "x:", "defaults: {env: {A: b}}\nx:"
    )
    with pytest.raises(UsageError, match="line 2: x: unknown field"):
        read(text.encode(), SUITE, name="s")
    text = f"defaults: {{config: &c {{b: 0x10}}}}\n{HEAD}  config: *c\n"
    suite: Suite = read(text.encode(), SUITE, name="s")
    assert suite.cases[0].config == {"b": 16}


def test_lines_are_those_of_fields_and_the_last_known_part_of_others() -> None:
    lines = Lines(f"{HEAD}  expect:\n    response:\n      status: 200\n".encode())
    assert [
        lines.at(path)
        for path in (
            "cases[0]",
            "cases[0].expect.response.status",
            "cases[0].expect.response.headers.x",
            "nothing",
        )
    ] == [2, 5, 4, 1]
