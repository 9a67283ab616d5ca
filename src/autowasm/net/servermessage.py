"""ServerMessage: what a server says in the body of an error, as one short line that can be shown.

Reads the errors of the OCI distribution specification, of object stores (S3 and its relatives, Azure), of token endpoints,
and the first line of anything else. Invariants: the input is cut before it is parsed; no XML entity is expanded; the text
has no line break, no control character, no query of a URL and no credential that `parse` is given.

Sources: OCI distribution specification, "Error Codes"; RFC 6749 section 5.2 (`error`, `error_description`); Amazon S3
"Error responses"; Azure Storage "Status and error codes".
"""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from xml.parsers import expat

from autowasm.net.urls import redact

BODY_LIMIT: Final = 16 * 1024
"""Bytes of a body that are read. Real messages have below 2 KiB."""

_LONGEST: Final = 300
_ERRORS_SHOWN: Final = 3
_SHORTEST_SECRET: Final = 4
_URL: Final = re.compile(r"https?://[^\s\"'<>\\]+", re.IGNORECASE)
_QUERY: Final = re.compile(r"\?[^\s\"'<>?]*=[^\s\"'<>]*")
_AUTHORIZATION: Final = re.compile(r"\b(Basic|Bearer)\s+[A-Za-z0-9+/._~=-]{8,}", re.IGNORECASE)
_TITLE: Final = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_TAG: Final = re.compile(r"<[^>]*>")
_NOT_SHOWN: Final = re.compile(r"<(script|style|head)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_XML_FIELDS: Final = frozenset({"Code", "Message", "AuthenticationErrorDetail", "Details"})
_MESSAGES: Final = (
    "message",
    "error_description",
    "error",
    "details",
    "detail",
    "title",
    "msg",
    "description",
)
"""Names, in any case, under which JSON APIs put their sentence: ECR and Harbor, RFC 6749, Docker Hub, RFC 9457, AWS."""
_CONFIDENTIAL: Final = re.compile(r"token|secret|passw|auth|key|signature", re.IGNORECASE)
"""Names of JSON values that are not shown."""


@dataclass(frozen=True, slots=True)
class ServerMessage:
    """`code` is the server's own (`DENIED`, `ExpiredToken`), empty if it has none; `text` is for people."""

    code: str = ""
    text: str = ""
    is_page: bool = False
    """The body is a web page: a proxy, a login page, not the API that was asked."""
    is_data: bool = False
    """The body is JSON or XML: an API has understood the request."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.code, self.text) if part)

    def mentions(self, *words: str) -> bool:
        """Whether code or text contains one of `words`, in any case."""
        said = str(self).lower()
        return any(word in said for word in words)


NOTHING_SAID: Final = ServerMessage()


def parse(data: bytes, content_type: str = "", *, secrets: Iterable[str] = ()) -> ServerMessage:
    """What `data`, the beginning of an error's body, says. Never raises. `secrets` are cut out of the text."""
    text = data[:BODY_LIMIT].decode(errors="replace").lstrip("\ufeff \t\r\n")
    found = _from_json(text) or _from_xml(text) or _from_text(text, content_type)
    hidden = [secret for secret in secrets if len(secret) >= _SHORTEST_SECRET]
    return ServerMessage(
        _clean(found.code, hidden),
        _clean(found.text, hidden),
        is_page=found.is_page,
        is_data=found.is_data,
    )


def _from_json(text: str) -> ServerMessage | None:
    if not text.startswith(("{", "[")):
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    errors = document if isinstance(document, list) else document.get("errors")
    found = NOTHING_SAID
    if isinstance(errors, list):
        said = [_one_error(error) for error in errors[:_ERRORS_SHOWN] if isinstance(error, Mapping)]
        if said:
            rest = "; ".join(filter(None, (said[0].text, *map(str, said[1:]))))
            found = ServerMessage(said[0].code, rest)
    else:
        found = _one_error(document)
    if not str(found):
        found = ServerMessage("", _as_it_is(document))
    return replace(found, is_data=True)


def _as_it_is(document: Any) -> str:
    """A document of an unknown form on one line, without what its names call confidential; empty if it has no text."""
    with contextlib.suppress(RecursionError):
        shown, texts = _shown(document)
        return json.dumps(shown, ensure_ascii=False) if texts else ""
    return ""


def _shown(value: Any) -> tuple[Any, int]:
    """The value, and how many texts are in it."""
    if isinstance(value, Mapping):
        pairs = {
            name: ("…", 0) if _CONFIDENTIAL.search(name) else _shown(inner)
            for name, inner in value.items()
        }
        return {name: shown for name, (shown, _) in pairs.items()}, sum(
            texts for _, texts in pairs.values()
        )
    if isinstance(value, list):
        items = [_shown(inner) for inner in value]
        return [shown for shown, _ in items], sum(texts for _, texts in items)
    return value, isinstance(value, str) and bool(value.strip())


def _one_error(written: Mapping[str, Any]) -> ServerMessage:
    error = {name.lower(): value for name, value in written.items()}
    code, detail = error.get("code"), error.get("detail")
    if isinstance(detail, Mapping):  # Artifactory: {"detail": {"description": …}}
        error["detail"] = detail.get("description", detail.get("message"))
    texts = [
        value
        for value in (error.get(name) for name in _MESSAGES)
        if isinstance(value, str) and value.strip()
    ]
    inner = error.get("error")
    if isinstance(inner, Mapping) and not texts:  # {"error": {"code": …, "message": …}}
        return _one_error({key: value for key, value in inner.items() if key.lower() != "error"})
    unique = [text for text in dict.fromkeys(texts) if text != code][:2]
    return ServerMessage(code if isinstance(code, str) else "", ", ".join(unique))


def _from_xml(text: str) -> ServerMessage | None:
    """`<Error><Code/><Message/></Error>`, whole or cut. A document type, and so every entity, ends the reading."""
    if not text.startswith("<") or "<Code" not in text:
        return None
    fields: dict[str, str] = {}
    path: list[str] = []

    def start(name: str, _attributes: object) -> None:
        path.append(name.rpartition(":")[2])

    def end(_name: str) -> None:
        path.pop()

    def characters(data: str) -> None:
        if len(path) > 1 and path[-1] in _XML_FIELDS:
            fields[path[-1]] = fields.get(path[-1], "") + data

    def doctype(*_: object) -> None:
        raise ValueError("document types are not read")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = doctype
    # Of a document that is cut or wrong, the fields before that place count.
    with contextlib.suppress(expat.ExpatError, ValueError):
        parser.Parse(text.partition("?>")[2] if text.startswith("<?xml") else text, False)
    if not fields.get("Code"):
        return None
    parts = [fields.get(name, "") for name in ("Message", "AuthenticationErrorDetail", "Details")]
    # Azure puts a request id and a time on lines of their own.
    firsts = [part.strip().splitlines()[0] for part in parts if part.strip()]
    return ServerMessage(fields["Code"], ", ".join(dict.fromkeys(firsts)), is_data=True)


def _from_text(text: str, content_type: str) -> ServerMessage:
    kind = content_type.partition(";")[0].strip().lower()
    is_page = kind in {"text/html", "application/xhtml+xml"} or bool(
        re.match(r"<(!doctype html|html)\b", text, re.IGNORECASE)
    )
    if is_page:
        title = _TITLE.search(text)
        text = title[1] if title and title[1].strip() else _TAG.sub(" ", _NOT_SHOWN.sub(" ", text))
    elif text.count("\ufffd") > len(text) // 10 or "\0" in text:
        return NOTHING_SAID  # not text: compressed, a module, …
    is_xml = not is_page and text.startswith("<") and (text.startswith("<?xml") or "xml" in kind)
    if is_xml:  # of an unknown form: its text
        text = " ".join(_TAG.sub(" ", text).split())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if is_page or is_xml:
        import html  # noqa: PLC0415 - its table of names takes a millisecond, which is rarely needed

        return ServerMessage(
            "", html.unescape(" ".join(lines[:1])), is_page=is_page, is_data=is_xml
        )
    return ServerMessage("", lines[0] if lines else "")


def _clean(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "…")
    text = " ".join(text[: 10 * _LONGEST].split())
    text = _URL.sub(lambda found: redact(found[0]), text)
    text = _QUERY.sub("?…", text)
    text = _AUTHORIZATION.sub(r"\1 …", text)
    text = "".join(character if character.isprintable() else "�" for character in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
