"""Field errors, as Kubernetes' `field.Error`: each value that does not fit a msgspec Struct, with its field and the correction.

`find` runs only after msgspec has refused a value. Invariants: a refused value has at least one
error; the number of errors, of examined items and of compared names is bounded, so that hostile input costs little; no
text holds the content of a list or a mapping, or the query or the user of a URL.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import GenericAlias
from typing import Any, Final, TypeGuard

import msgspec
from msgspec import inspect

from autowasm.text import listed, shown, without_secrets

MAX_FIELD_ERRORS: Final = 20
"""Of one value. The author corrects these first."""
_MAX_ITEMS: Final = 300
"""Items of a list or a mapping that are examined: more than every limit on their number."""
_MAX_COMPARED: Final = 40
"""Characters of a name that is compared with the names of the fields."""
_SIMILAR: Final = 0.72
"""Ratio of difflib from which on a name counts as a misspelling of another."""
_MIN_PART: Final = 4
"""Minimum number of letters of a part of a name that counts as the name."""
_MAX_SHOWN: Final = 80
_NUMBER: Final = re.compile(r"\s*[-+]?\d{1,18}\s*\Z")
_NUMBERS_LISTED: Final = re.compile(r"\s*\d{1,18}(\s*,\s*\d{1,18}){0,20}\s*\Z")
_LABELS: Final = re.compile(r"[\w./-]+=[\w.-]*(,[\w./-]+=[\w.-]*){0,5}\Z", re.ASCII)
"""As `kubectl get -l` takes them."""
_PLACEHOLDER: Final = "placeholder"


@dataclass(frozen=True, slots=True)
class FieldError:
    """`path`: the field as its author wrote it. `problem`: the value that was found, and the correction."""

    path: str
    problem: str
    is_about_name: bool = False
    """The field has another name or another place; its value may be right."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of one format. Paths are those of the schema, with `[]` for an item of a list and `[*]` for a key of a mapping."""

    expected: Mapping[str, str] = field(default_factory=dict)
    """The value of a field, for the end of a sentence that begins with `use`."""
    meant: Mapping[str, str] = field(default_factory=dict)
    """The path of an unknown field, and the path of the field of the schema that is meant. `*` is any name."""
    meant_by: Callable[[str, object], str] | None = None
    """From the path of `meant` and the value to the path of the field that the value is for."""
    unsupported: Mapping[str, str] = field(default_factory=dict)
    """The path of a valid field of another API, and the alternative. A path without a parent matches every parent."""
    formats: frozenset[str] = frozenset()
    """The paths of strings with a format that no number has, so quotes do not correct one."""


@dataclass(frozen=True, slots=True)
class Found:
    """`corrected`: the value with the fields that fit, and placeholders for required ones that do not.

    `written` has, for each field of the schema that was found under another name or at another place, the path there.
    """

    errors: tuple[FieldError, ...]
    corrected: Any
    written: Mapping[str, str]

    def is_about(self, path: str) -> bool:
        """Whether an error in a value was found at `path` or above it."""
        return any(not each.is_about_name and _is_within(path, each.path) for each in self.errors)

    def as_written(self, path: str) -> str:
        """The path at which the author wrote the field of the schema."""
        for right, written in self.written.items():
            if _is_within(path, right):
                return written + path[len(right) :]
        return path


@dataclass(frozen=True, slots=True)
class _Field:
    """A field, item or key of a schema."""

    kind: inspect.Type
    decoder: msgspec.json.Decoder[Any]


class Schema:
    """A msgspec Struct with its words. Made on import: msgspec has to know all types before threads use them (see `registry/manifest.py`)."""

    def __init__(self, kind: type, vocabulary: Vocabulary, *, root: str = "") -> None:
        """`root` is the path of a whole value, such as `spec`."""
        self.vocabulary = vocabulary
        self.root = root
        whole = inspect.type_info(kind)
        self.fields: Final[Mapping[str, _Field]] = {
            path: _Field(each, msgspec.json.Decoder(_python_type(each)))
            for path, each in ((root, whole), *_walked(whole, root))
        }

    def kinds(self) -> Mapping[str, inspect.Type]:
        """The path of every field, item and key, and its type."""
        return {path: each.kind for path, each in self.fields.items() if path != self.root}

    def fits(self, value: object, place: str) -> bool:
        """Whether msgspec accepts the value of a field."""
        try:
            msgspec.convert(value, self.fields[place].decoder.type, strict=True)
        except (msgspec.ValidationError, UnicodeEncodeError):
            return False
        return True

    def find(self, value: object) -> Found:
        """The errors of a value, which msgspec has refused."""
        search = _Search(self)
        corrected = search.examine(value, self.root, self.root)
        return Found(search.remaining(), search.placed(corrected), search.written)


def similar(name: str, names: Sequence[str]) -> str | None:
    """The name in `names` that `name` misspells: it differs in case, punctuation or a few letters, or is a part of it."""
    plain = _plain(name)
    by_plain = {_plain(each): each for each in names}
    if plain in by_plain:
        return by_plain[plain]
    close = difflib.get_close_matches(plain, by_plain, n=1, cutoff=_SIMILAR)
    if close:
        return by_plain[close[0]]
    longer = [each for each in by_plain if len(plain) >= _MIN_PART and plain in each]
    return by_plain[longer[0]] if len(longer) == 1 else None


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name[:_MAX_COMPARED]).lower()


def _is_within(path: str, parent: str) -> bool:
    return path == parent or (path.startswith(parent) and path[len(parent)] in ".[")


class _Search:
    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self.errors: list[FieldError] = []
        self.written: dict[str, str] = {}
        self._vocabulary = schema.vocabulary
        self._moved: list[tuple[str, Any]] = []
        self._missing: list[tuple[FieldError, str]] = []
        self._number = 40_000

    @property
    def is_full(self) -> bool:
        return len(self.errors) >= MAX_FIELD_ERRORS

    def report(self, path: str, problem: str, *, is_about_name: bool = False) -> None:
        if not self.is_full:
            self.errors.append(FieldError(path or "object", problem, is_about_name))

    def examine(self, value: Any, path: str, place: str, *, optional: bool = False) -> Any:
        """The value, corrected. `place` is the path in the schema, `path` that of the author."""
        kind = self._schema.fields[place].kind
        kinds, nullable = _alternatives(kind)
        if value is None and nullable:
            return value
        if self._schema.fits(value, place) and not _is_open(kind):
            return value
        for each in kinds:
            if isinstance(each, inspect.StructType) and isinstance(value, dict):
                return self._struct(value, each, path, place)
            if isinstance(each, inspect.DictType) and isinstance(value, dict):
                return self._mapping(value, path, place)
            if isinstance(each, inspect.VarTupleType) and isinstance(value, list | tuple):
                return self._list(value, path, place)
        self.report(path, self._wrong(value, kinds, place, optional=optional))
        return self._placeholder(kinds[0])

    def _struct(
        self, value: dict[Any, Any], kind: inspect.StructType, path: str, place: str
    ) -> dict[str, Any]:
        fields = {each.encode_name: each for each in kind.fields}
        some = [name for name in islice(value, _MAX_ITEMS) if isinstance(name, str)]
        names = [*some, *(name for name in fields if name in value and name not in some)]
        self._check_keys(value, path)
        result: dict[str, Any] = {}
        substitutes: dict[str, str] = {}
        for name in names:
            if name in fields:
                each = fields[name]
                result[name] = self.examine(
                    value[name],
                    _join(path, name),
                    _join(place, name),
                    optional=not each.required,
                )
            elif not self.is_full and self._is_ours(name, fields, value, kind):
                meant = self._unknown(name, value, fields, path, place)
                if meant is not None:
                    substitutes[meant] = name
        for right, name in substitutes.items():
            where = _join(path, shown(name, most=_MAX_SHOWN))
            if right in fields:
                result[right] = self.examine(value[name], where, _join(place, right))
                self.written[_join(place, right)] = where
        for name, each in fields.items():
            if not each.required or name in result:
                continue
            expected = self._vocabulary.expected.get(_join(place, name))
            problem = f"is required; use {expected}" if expected else "is required"
            self.report(_join(path, name), problem)
            self._missing.append((FieldError(_join(path, name), problem), _join(place, name)))
            result[name] = self._placeholder(each.type)
        return result

    def _is_ours(
        self,
        name: str,
        fields: Mapping[str, inspect.Field],
        value: Mapping[Any, Any],
        kind: inspect.StructType,
    ) -> bool:
        """Whether an unknown field is an error. If the Struct allows others, only a field of another level or a misspelt one is."""
        if kind.forbid_unknown_fields or self._elsewhere(name):
            return True
        missing = [each for each, one in fields.items() if one.required and each not in value]
        return similar(name, missing) is not None

    def remaining(self) -> tuple[FieldError, ...]:
        """The errors, except those for missing fields that were found at another place."""
        elsewhere = {
            error
            for error, place in self._missing
            if any(_is_within(right, place) for right in self.written)
        }
        return tuple(each for each in self.errors if each not in elsewhere)

    def _check_keys(self, value: dict[Any, Any], path: str) -> None:
        for name in islice(value, _MAX_ITEMS):
            if not isinstance(name, str):
                self.report(
                    path,
                    f"the key {shown(str(name), most=_MAX_SHOWN)} must be a string: put it in quotes",
                )
                return
            if not _is_text(name):
                problem = (
                    "a field's name contains an unpaired surrogate, which is not a valid character"
                )
                self.report(path, problem)
                return

    def _unknown(
        self,
        name: str,
        value: dict[Any, Any],
        fields: Mapping[str, inspect.Field],
        path: str,
        place: str,
    ) -> str | None:
        """Report a field that the schema does not have here. Returns the name of the field that is meant, if that field is not given."""
        if not _is_text(name):
            return None
        where = _join(path, shown(name, most=_MAX_SHOWN))
        words = self._vocabulary
        here = _join(place, name)
        alternative = words.unsupported.get(here) or words.unsupported.get(name)
        if alternative is not None:
            self.report(where, f"is not supported; {alternative}")
            return None
        meant = words.meant.get(here)
        below = words.meant.get(_join(place, "*"))
        if meant is None:
            sibling = similar(name, list(fields))
            exact = self._elsewhere(name)
            if sibling is not None and (_plain(sibling) == _plain(name) or not exact):
                meant = _join(place, sibling)
            elif exact:
                meant = exact[0]
        if meant and words.meant_by and meant.rpartition(".")[0] != place:
            meant = words.meant_by(meant, value[name])
        if meant is None and below is not None and isinstance(value[name], str):
            self.written[below] = path
            self.report(where, f"is at the wrong level; write it under {below}", is_about_name=True)
            return None
        if meant is None:
            known = ", ".join(fields)
            self.report(where, f"unknown field; {place or 'the object'} has the fields {known}")
            return None
        parent, _, last = meant.rpartition(".")
        if parent == place:
            self.report(where, f"unknown field; did you mean {last}?", is_about_name=True)
            return last if last not in value else None
        there = meant.replace("[*]", "[NAME]")
        self.report(where, f"is at the wrong level; move it to {there}", is_about_name=True)
        if meant not in self.written and "[" not in meant:
            self.written[meant] = where
            self._moved.append((meant, self.examine(value[name], where, meant)))
        return None

    def _elsewhere(self, name: str) -> list[str]:
        """The fields of this name at other places, except those of list items, which have common names."""
        plain = _plain(name)
        return [
            path
            for path in self._schema.fields
            if plain and "[]" not in path and _plain(path.rpartition(".")[2]) == plain
        ]

    def _mapping(self, value: dict[Any, Any], path: str, place: str) -> dict[str, Any]:
        before = len(self.errors)
        self._check_keys(value, path)
        result = {}
        for index, (name, item) in enumerate(value.items()):
            if index >= _MAX_ITEMS:
                break
            if isinstance(name, str) and _is_text(name):
                where = f"{path}[{shown(name, most=_MAX_SHOWN)}]"
                result[name] = self.examine(item, where, f"{place}[*]")
        if len(self.errors) == before:
            self.report(path, "one of its values has the wrong type")
        return result

    def _list(self, value: Sequence[Any], path: str, place: str) -> list[Any]:
        before = len(self.errors)
        result = [
            self.examine(item, f"{path}[{index}]", f"{place}[]")
            for index, item in enumerate(value[:_MAX_ITEMS])
        ]
        if len(self.errors) == before:
            self.report(path, "one of its items has the wrong type")
        return result

    def _wrong(
        self, value: Any, kinds: Sequence[inspect.Type], place: str, *, optional: bool
    ) -> str:
        """The sentence on a value of the wrong type."""
        kind = kinds[0]
        action = f"use {self._expected(kinds, place)}"
        if isinstance(kind, inspect.EnumType):
            return _no_choice(value, kind, optional=optional)
        if value is None:
            return f"is null; {action}{_OR_REMOVE if optional else ''}"
        texts = isinstance(kind, inspect.StrType)
        if (
            texts
            and isinstance(value, bool | int | float)
            and place not in self._vocabulary.formats
        ):
            action = f"put it in quotes{_IN_YAML.get(value, '') if isinstance(value, bool) else ''}"
        elif (
            action.startswith("use the name")
            and isinstance(value, dict)
            and isinstance(value.get("name"), str)
        ):
            action = f"use the name itself: {_quoted(value['name'])}"
        elif isinstance(kind, _NUMBERS) and len(kinds) == 1 and isinstance(value, dict):
            one = next(iter(value.values()), None) if len(value) == 1 else None
            is_number = isinstance(one, int) and not isinstance(one, bool)
            action = f"use the number itself: {shown(str(one), most=20)}" if is_number else action
        elif isinstance(kind, inspect.IntType) and isinstance(value, float) and value.is_integer():
            action = f"it is too large; {action}"
        elif isinstance(value, str) and "=" in value and _is_of_variables(kind):
            name = value.partition("=")[0]  # the value may be a password
            return f'"{shown(name, most=_MAX_SHOWN)}=…" is a string; write it as {{name: {shown(name, most=_MAX_SHOWN)}, value: …}}'
        elif isinstance(value, str):
            action = _unquoted(value, kind) or action
        elif isinstance(kind, inspect.VarTupleType) and isinstance(kind.item_type, _NUMBERS):
            action = f"use a list: [{value}]" if isinstance(value, int) else action
        elif isinstance(kind, inspect.StructType | inspect.DictType) and _is_one_mapping(value):
            dashes = "dash" if len(value) == 1 else "dashes"
            action = f"remove the {dashes}, and {action}"
        return f"{_described(value)}; {action}"

    def _expected(self, kinds: Sequence[inspect.Type], place: str) -> str:
        return self._vocabulary.expected.get(place) or " or ".join(map(_name_of, kinds))

    def _placeholder(self, kind: inspect.Type) -> Any:
        kind = _alternatives(kind)[0][0]
        if isinstance(kind, inspect.StructType):
            return {
                each.encode_name: self._placeholder(each.type)
                for each in kind.fields
                if each.required
            }
        if isinstance(kind, _NUMBERS):
            self._number += 1
            return self._number
        if isinstance(kind, inspect.EnumType):
            return next(iter(kind.cls)).value
        if isinstance(kind, inspect.BoolType):
            return False
        if isinstance(kind, inspect.VarTupleType):
            return []
        return {} if isinstance(kind, inspect.DictType) else _PLACEHOLDER

    def placed(self, corrected: Any) -> Any:
        """`corrected` with the fields that were at the wrong level, where they belong."""
        for path, value in self._moved:
            steps = path.removeprefix(self._schema.root).removeprefix(".").split(".")
            target = corrected
            for step in steps[:-1]:
                if isinstance(target, dict) and target.get(step) is None:
                    target[step] = {}
                target = target[step] if isinstance(target, dict) else None
            if isinstance(target, dict):
                target[steps[-1]] = value
        return corrected


_NUMBERS: Final = (inspect.IntType, inspect.FloatType)


def _is_open(kind: inspect.Type) -> bool:
    """Whether it is a Struct that allows unknown fields."""
    return isinstance(kind, inspect.StructType) and not kind.forbid_unknown_fields


def _python_type(kind: inspect.Type) -> Any:
    """The annotation of a type of `msgspec.inspect`, for `msgspec.convert`."""
    if isinstance(kind, inspect.StructType | inspect.EnumType):
        return kind.cls
    if isinstance(kind, inspect.UnionType):
        result: Any = _python_type(kind.types[0])
        for each in kind.types[1:]:
            result = result | _python_type(each)
        return result
    if isinstance(kind, inspect.VarTupleType):
        return GenericAlias(tuple, (_python_type(kind.item_type), ...))
    if isinstance(kind, inspect.DictType):
        return GenericAlias(dict, (str, _python_type(kind.value_type)))
    return _PLAIN.get(type(kind), Any)


_PLAIN: Final[Mapping[type, Any]] = {
    inspect.StrType: str,
    inspect.IntType: int,
    inspect.FloatType: float,
    inspect.BoolType: bool,
    inspect.NoneType: None,
}


def _alternatives(kind: inspect.Type) -> tuple[list[inspect.Type], bool]:
    """The types of a union without None, and whether None is one."""
    kinds = list(kind.types) if isinstance(kind, inspect.UnionType) else [kind]
    rest = [each for each in kinds if not isinstance(each, inspect.NoneType)]
    return rest, len(rest) < len(kinds)


def _walked(kind: inspect.Type, path: str) -> Iterator[tuple[str, inspect.Type]]:
    for each in _alternatives(kind)[0]:
        if isinstance(each, inspect.StructType):
            for one in each.fields:
                yield _join(path, one.encode_name), one.type
                yield from _walked(one.type, _join(path, one.encode_name))
        elif isinstance(each, inspect.VarTupleType):
            yield f"{path}[]", each.item_type
            yield from _walked(each.item_type, f"{path}[]")
        elif isinstance(each, inspect.DictType):
            yield f"{path}[*]", each.value_type
            yield from _walked(each.value_type, f"{path}[*]")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_of_variables(kind: inspect.Type) -> bool:
    """Whether it is a Struct with a name and a value, or a list of them."""
    item = kind.item_type if isinstance(kind, inspect.VarTupleType) else kind
    return isinstance(item, inspect.StructType) and {each.encode_name for each in item.fields} == {
        "name",
        "value",
    }


def _is_one_mapping(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _described(value: object, *, bare: bool = False) -> str:
    """`9080 is a number`; `bare`: only the value."""
    match value:
        case None:
            text, what = "null", "no value"
        case bool():
            text, what = ("true" if value else "false"), "a boolean"
        case int() | float():
            text, what = shown(str(value), most=_MAX_SHOWN), "a number"
        case str():
            text, what = _quoted(value), "a string"
        case list():
            text, what = "", "a list"
        case dict():
            names = listed([str(each) for each in islice(value, 5)])
            text, what = "", f"a mapping with {names}" if names else "an empty mapping"
        case _:
            text, what = "", shown(type(value).__name__)
    return text if bare else f"{text} is {what}".lstrip()


def _quoted(text: str) -> str:
    return json.dumps(shown(without_secrets(text), most=_MAX_SHOWN), ensure_ascii=False)


def _unquoted(value: str, kind: inspect.Type) -> str:
    """The correction of a number or boolean in quotes, or of a string instead of a list or mapping with one field."""
    if isinstance(kind, _NUMBERS) and _NUMBER.match(value):
        return "remove the quotes"
    if isinstance(kind, inspect.BoolType) and value.lower() in {"true", "false"}:
        return "remove the quotes"
    if isinstance(kind, inspect.VarTupleType):
        if isinstance(kind.item_type, inspect.StrType):
            return f"use a list: [{_quoted(value)}]"
        if isinstance(kind.item_type, _NUMBERS) and _NUMBERS_LISTED.match(value):
            return f"use a list of numbers: [{value.strip()}]"
    if _LABELS.match(value):
        labels = f"{{{', '.join(each.replace('=', ': ', 1) for each in value.split(','))}}}"
        if isinstance(kind, inspect.DictType):
            return f"use a mapping: {labels}"
        fields = kind.fields if isinstance(kind, inspect.StructType) else ()
        if len(fields) == 1 and isinstance(fields[0].type, inspect.DictType):
            return f"write it as {fields[0].encode_name}: {labels}"
    if isinstance(kind, inspect.StructType):
        required = [each.encode_name for each in kind.fields if each.required]
        if len(required) == 1 and isinstance(kind.fields[0].type, inspect.StrType):
            return f"write it one level deeper, as {required[0]}: {_quoted(value)}"
    return ""


_IN_YAML: Final = {True: "; yes and on are true in YAML", False: "; no and off are false in YAML"}
_OR_REMOVE: Final = ", or remove the field"


def _no_choice(value: object, kind: inspect.EnumType, *, optional: bool) -> str:
    names = [str(each.value) for each in kind.cls]
    allowed = f"must be one of {', '.join(names)}"
    if isinstance(value, str):
        close = similar(value, names)
        return f"{allowed}, not {_cut(value)!r}" + (f"; did you mean {close}?" if close else "")
    if value is None:
        return f"is null; use one of {', '.join(names)}{_OR_REMOVE if optional else ''}"
    if value is False and "off" in names:
        return f'{allowed}, not false; write "off" in quotes, it is false in YAML otherwise'
    return f"{allowed}, not {_described(value, bare=True) or _described(value).removeprefix('is ')}"


def _cut(text: str) -> str:
    return shown(without_secrets(text), most=_MAX_SHOWN)


def _name_of(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.StructType):
        required = [each.encode_name for each in kind.fields if each.required]
        names = required or [each.encode_name for each in kind.fields]
        return f"a mapping with {' and '.join(names) if required else ' or '.join(names)}"
    return next((name for types, name in _NAMES if isinstance(kind, types)), "another value")


_NAMES: Final[tuple[tuple[type, str], ...]] = (
    (inspect.StrType, "a string"),
    (inspect.IntType, "a whole number"),
    (inspect.FloatType, "a number"),
    (inspect.BoolType, "true or false"),
    (inspect.VarTupleType, "a list"),
    (inspect.DictType, "a mapping of names to values"),
)
