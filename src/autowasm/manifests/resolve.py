"""The value of a YAML scalar, as kubectl reads it. Pure.

kubectl reads manifests with sigs.k8s.io/yaml, which is go-yaml 2 (`resolve.go`, `decode.go`) followed by Go's encoding/json.
go-yaml 2 is neither YAML 1.1 nor 1.2: `y` is true, `0o17` is 15, `22:22` is text, `1e3` is a number. Invariant: the value
is valid in JSON. `tests/property/test_kubectl_yaml.py` compares it with kubectl's own code.
"""

import base64
import binascii
import codecs
import datetime
import math
import re
import struct
from typing import Final

Scalar = str | int | float | bool | None

STR: Final = "tag:yaml.org,2002:str"
BOOL: Final = "tag:yaml.org,2002:bool"
INT: Final = "tag:yaml.org,2002:int"
FLOAT: Final = "tag:yaml.org,2002:float"
NULL: Final = "tag:yaml.org,2002:null"
TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"
BINARY: Final = "tag:yaml.org,2002:binary"
MERGE: Final = "tag:yaml.org,2002:merge"

_RESOLVABLE: Final = frozenset({None, STR, BOOL, INT, FLOAT, NULL, TIMESTAMP})
_TYPES: Final[dict[str, type | None]] = {BOOL: bool, INT: int, FLOAT: float, NULL: None}
_WORDS: Final[dict[str, Scalar]] = {
    **dict.fromkeys(
        ["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"], True
    ),
    **dict.fromkeys(
        ["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"], False
    ),
    **dict.fromkeys(["", "~", "null", "Null", "NULL"], None),
    **dict.fromkeys([".nan", ".NaN", ".NAN"], math.nan),
    **dict.fromkeys([".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"], math.inf),
    **dict.fromkeys(["-.inf", "-.Inf", "-.INF"], -math.inf),
}
_NUMERIC: Final = frozenset("+-0123456789")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_INTEGER: Final = re.compile(
    r"(?P<sign>[-+]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<binary>[01]+)|0[oO](?P<octal>[0-7]+)"
    r"|0(?P<old>[0-7]+)|(?P<decimal>0|[1-9][0-9]*))\Z"
)
_BASES: Final = {"hex": 16, "binary": 2, "octal": 8, "old": 8, "decimal": 10}
_STRAY: Final = re.compile(r"(?<![0-9])_|_(?![0-9])")
"""An underscore that is not between digits: strconv.ParseFloat refuses it; elsewhere go-yaml first removes underscores."""
_MAX_DIGITS: Final = 64
"""Digits of 64 bits. Longer numbers are out of range, and Python converts them in quadratic time."""
_TIMESTAMP: Final = re.compile(
    r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})"
    r"(?:[Tt]([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})(?:[.,][0-9]+)?(?:Z|[-+][0-9]{2}:[0-9]{2})"
    r"| ([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})(?:[.,][0-9]+)?)?\Z"
)
_EXPONENT_FROM: Final = 1e21
"""Below this encoding/json writes floats without an exponent, and whole ones without a point."""


class Unfit(ValueError):
    """The scalar does not fit its tag, or is not a number in JSON. The message omits the scalar."""


def resolve(tag: str | None, text: str, *, plain: bool) -> Scalar:
    """The value of a scalar. `plain`: without quotes and without a tag, or with the tag `!`. Raises Unfit."""
    return as_json(_decode(tag, text, plain=plain))


def resolve_key(tag: str | None, text: str, *, plain: bool) -> tuple[str, type]:
    """The key of a mapping as text, as in JSON, and the type that distinguishes it in Go's map. Raises Unfit.

    As in `convertToJSONableObject` of sigs.k8s.io/yaml: `8080` is "8080", `true` and `y` are "true".
    """
    value = _decode(tag, text, plain=plain)
    if isinstance(value, str):
        return value, str
    if isinstance(value, bool):
        return ("true" if value else "false"), bool
    if isinstance(value, float):
        return _as_float32(value), float
    if value is None:
        raise Unfit("null cannot be a key; put it in quotes")
    if value >= 2**63:
        raise Unfit("an integer of more than 63 bits cannot be a key; put it in quotes")
    return str(value), int


def _decode(tag: str | None, text: str, *, plain: bool) -> Scalar:
    """The rules of go-yaml's `decoder.scalar`: with an unknown tag the value is the text. Raises Unfit."""
    if tag is None:
        return _guess(text) if plain else text
    if tag == BINARY:
        return _from_base64(text)
    if tag == STR or tag not in _RESOLVABLE:
        return text
    if tag == TIMESTAMP:
        if not _is_timestamp(text):
            raise Unfit("does not fit its tag !!timestamp")
        return text
    value = _guess(text)
    if tag == FLOAT and type(value) is int and value < 2**63:
        return float(value)  # an integer of all 64 bits stays an integer and does not fit
    if (None if value is None else type(value)) is not _TYPES[tag]:
        raise Unfit(f"does not fit its tag !!{tag.rpartition(':')[2]}")
    return value


def as_json(value: Scalar) -> Scalar:
    """The number after Go has written it as JSON and read it as int64 or float64. Raises Unfit."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return value
        try:
            value = float(value)
        except OverflowError:
            raise Unfit("is a number out of range") from None
    if not math.isfinite(value):
        raise Unfit("must be a finite number")
    if value.is_integer() and abs(value) < _EXPONENT_FROM:
        # The shortest digits of this float, padded with zeros: 2**63 is 9223372036854776000.
        digits, _, exponent = repr(value).partition("e")
        return int(float(value)) if not exponent else _whole(digits, int(exponent))
    return value


def _whole(digits: str, exponent: int) -> int:
    sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits)
    before, _, after = digits.partition(".")
    return sign * int((before + after).ljust(exponent + 1, "0"))


def _guess(text: str) -> Scalar:
    """The rules of go-yaml's `resolve` without a tag. `as_json` converts numbers later."""
    if text in _WORDS:
        return _WORDS[text]
    first = text[0]
    if first == ".":
        return text if _STRAY.search(text) else _finite(text.replace("_", ""), text)
    if first not in _NUMERIC:
        return text
    bare = text.replace("_", "")
    found = _INTEGER.match(bare)
    if found:
        kind = found.lastgroup or "decimal"
        digits = found[kind].lstrip("0")
        if len(digits) <= _MAX_DIGITS:
            value = int(found["sign"] + (digits or "0"), _BASES[kind])
            if -(2**63) <= value < (2**63 if found["sign"] else 2**64):
                return value
    return _finite(bare, text)


def _finite(text: str, otherwise: str) -> Scalar:
    if _FLOAT.match(text):
        value = float(text)
        if math.isfinite(value):
            return value
    return otherwise


def _as_float32(value: float) -> str:
    """As strconv.FormatFloat(value, 'g', -1, 32): a float as a key has the digits of a float32."""
    rounded = _rounded(value)
    if not math.isfinite(rounded):
        return ".nan" if math.isnan(rounded) else (".inf" if rounded > 0 else "-.inf")
    for precision in range(9):
        written = f"{rounded:.{precision}e}"
        if _rounded(float(written)) == rounded:
            break
    mantissa, _, exponent = written.lstrip("-").partition("e")
    digits, power = mantissa.replace(".", "").rstrip("0") or "0", int(exponent)
    sign = "-" if written.startswith("-") else ""
    if not -4 <= power < 6:
        fraction = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{fraction}e{'-' if power < 0 else '+'}{abs(power):02d}"
    if power < 0:
        return f"{sign}0.{'0' * (-power - 1)}{digits}"
    whole, rest = digits[: power + 1].ljust(power + 1, "0"), digits[power + 1 :]
    return f"{sign}{whole}.{rest}" if rest else f"{sign}{whole}"


def _rounded(value: float) -> float:
    """The nearest float32."""
    try:
        result: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return result


def _is_timestamp(text: str) -> bool:
    found = _TIMESTAMP.match(text)
    if not found:
        return False
    year, month, day, *clock = (int(each) for each in found.groups("0"))
    try:
        datetime.date(year or 4, month, day)  # the year 0 is a leap year
        for hour, minute, second in (clock[:3], clock[3:]):
            datetime.time(hour, minute, second)
    except ValueError:
        return False
    return True


def _from_base64(text: str) -> str:
    try:
        data = base64.b64decode(re.sub(r"[\r\n]", "", text), validate=True)
    except (binascii.Error, ValueError):
        raise Unfit("has the tag !!binary but is not base64") from None
    return data.decode("utf-8", _GO)


_GO: Final = "autowasm-replace-each-byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for each byte that is not UTF-8, as in Go; Python's `replace` writes one for several bytes."""
    assert isinstance(error, UnicodeDecodeError)  # noqa: S101  # for mypy: only decode() names it
    return "\ufffd", error.start + 1


codecs.register_error(_GO, _replace_each_byte)
