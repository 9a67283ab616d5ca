"""Records come from annotations and statuses that any client may have written."""

from typing import Any

import pytest

from autowasm.api import record as records
from autowasm.api.record import Record, belongs_to
from autowasm.digest import Sha256Hex
from tests.fakes.autowasms import IMAGE, URL, record

OF_IMAGE = f"registry:{IMAGE}"
OF_URL = f"object:{URL}"


def of_object(**fields: Any) -> Record:
    values: dict[str, Any] = {
        "source": OF_URL,
        "sha256": Sha256Hex("a" * 64),
        "size": 1,
        "abi": "0.2.1",
        "url": URL,
    }
    return Record(**{**values, **fields})


def test_equal_records_give_equal_text_that_reads_back() -> None:
    text = records.dump(record())
    assert text == records.dump(record())
    assert records.load(text) == record()
    assert "etag" not in text


def test_text_with_more_fields_reads() -> None:
    text = records.dump(record()).replace("{", '{"later":1,', 1)
    assert records.load(text) == record()


@pytest.mark.parametrize(
    ("candidate", "source"),
    [
        (record(), OF_IMAGE),
        (of_object(), OF_URL),
        (
            record(image="docker.io/a/b:x", source="registry:a/b@sha256:" + "1" * 64),
            "registry:a/b@sha256:" + "1" * 64,
        ),
        (record(source="registry:alpine", image="docker.io/library/alpine:x"), "registry:alpine"),
    ],
)
def test_own_record_belongs(candidate: Record, source: str) -> None:
    assert belongs_to(candidate, source)


SHA = "@sha256:" + "1" * 64


@pytest.mark.parametrize(
    ("candidate", "source"),
    [
        (record(), "registry:registry.example/team/filter:v2"),
        (record(image="registry.example/team/other:v1", source=OF_IMAGE), OF_IMAGE),
        (record(image="evil.example/team/filter:v1", source=OF_IMAGE), OF_IMAGE),
        (record(image="registry.example:444/team/filter:v1", source=OF_IMAGE), OF_IMAGE),
        (
            Record(
                source=OF_IMAGE, sha256=Sha256Hex("a" * 64), size=1, abi="0.2.1",
                image="registry.example/team/filter:v1",
            ),
            OF_IMAGE,
        ),
        (
            Record(
                source=OF_IMAGE, sha256=Sha256Hex("a" * 64), size=1, abi="0.2.1",
                image="http://169.254.169.254/x" + SHA,
            ),
            OF_IMAGE,
        ),
        (record(url="http://169.254.169.254/"), OF_IMAGE),
        (record(sha256="../../etc/passwd"), OF_IMAGE),
        (of_object(sha256="A" * 64), OF_URL),
        (of_object(url="http://evil.example/"), OF_URL),
        (of_object(url=URL + "?x"), OF_URL),
        (of_object(image="evil.example/a" + SHA), OF_URL),
        (
            record(source="registry:a/b@sha256:" + "2" * 64, image="docker.io/a/b:x"),
            "registry:a/b@sha256:" + "2" * 64,
        ),
        (record(source="", image="a/b:x"), ""),
        (record(source="registry:", image="a/b:x"), "registry:"),
    ],
)  # fmt: skip
def test_forged_record_is_useless(candidate: Record, source: str) -> None:
    assert not belongs_to(candidate, source)
