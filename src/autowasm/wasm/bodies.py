"""A bounded reader of function bodies: the instructions that the other checks need.

Not a validator (see `validation.py`): types and operands are skipped. Invariants: no read goes past the end of a body; at most
`limits.body_bytes` of bodies are read for one module; an unknown instruction is a ContentRejected. The known instructions are
those that Envoy's V8 runs, including legacy exception handling.

Sources: WebAssembly Core Specification 3.0, section 5.4 "Instructions"; github.com/WebAssembly/exception-handling,
proposals/exception-handling/legacy/Exceptions.md.
"""

from array import array
from collections.abc import Collection, Iterator
from typing import Final

from autowasm.limits import Limits
from autowasm.wasm.binary import BinaryReader, Section, invalid, too_many

BLOCK, LOOP, IF, ELSE, END = 0x02, 0x03, 0x04, 0x05, 0x0B
TRY, CATCH, THROW, RETHROW, THROW_REF, DELEGATE, CATCH_ALL, TRY_TABLE = (
    *(0x06, 0x07, 0x08, 0x09),
    *(0x0A, 0x18, 0x19, 0x1F),
)
UNREACHABLE, BR, BR_IF, BR_TABLE, RETURN = 0x00, 0x0C, 0x0D, 0x0E, 0x0F
CALL, RETURN_CALL, RETURN_CALL_INDIRECT, CALL_REF, RETURN_CALL_REF = 0x10, 0x12, 0x13, 0x14, 0x15
REF_FUNC, BR_ON_NULL, BR_ON_NON_NULL = 0xD2, 0xD5, 0xD6
BR_ON_CAST, BR_ON_CAST_FAIL = 0xFB18, 0xFB19
"""Instructions with a prefix are written as `prefix << 8 | number`."""

_NOTHING, _ONE, _TWO, _MEMORY, _BYTES, _LABELS, _TYPES, _CATCHES, _PREFIX, _UNKNOWN = range(10)
"""Forms of operands: none, one or two LEB128 integers, an address, 4 or 8 bytes, a vector of labels or types, …"""


def _forms() -> bytes:
    """The form of each instruction by its first byte."""
    forms = bytearray([_UNKNOWN]) * 256
    for form, codes in (
        (_NOTHING, (0x00, 0x01, 0x05, 0x0A, 0x0B, 0x0F, 0x19, 0x1A, 0x1B, *range(0x45, 0xC5))),
        (_NOTHING, (0xD1, 0xD3, 0xD4)),
        (_ONE, (0x02, 0x03, 0x04, 0x06, 0x07, 0x08, 0x09, 0x0C, 0x0D, 0x10, 0x12, 0x14, 0x15)),
        (_ONE, (0x18, *range(0x20, 0x27), *range(0x3F, 0x43), 0xD0, 0xD2, 0xD5, 0xD6)),
        (_TWO, (0x11, 0x13)),
        (_MEMORY, range(0x28, 0x3F)),
        (_BYTES, (0x43, 0x44)),
        (_LABELS, (BR_TABLE,)),
        (_TYPES, (0x1C,)),
        (_CATCHES, (TRY_TABLE,)),
        (_PREFIX, (0xFB, 0xFC, 0xFD, 0xFE)),
    ):
        for code in codes:
            forms[code] = form
    return bytes(forms)


_FORMS: Final = _forms()

_COLLECTED: Final = bytes((1, 1, 2, 2, 2, 2, 1, 1, 2, 2, 2, 1, 1, 1, 1, 0, 1, 2, 2, 2))
"""LEB128 integers after 0xFB and 0 (struct.new) to 19 (array.init_elem)."""
_BULK: Final = bytes((0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2, 1, 2, 1, 2, 1, 1, 1))
"""LEB128 integers after 0xFC and 0 (i32.trunc_sat_f32_s) to 17 (table.fill)."""
_VECTOR_END: Final = 0x114
_ATOMIC_END: Final = 0x4F
_MAX_LEB_BYTES: Final = 10
_MEMORY_INDEX: Final = 0x40
"""The bit of an alignment that is set if the index of a memory follows (multi-memory)."""
_DECLARED_BYTES: Final = 8
_CATCH_ALL_CLAUSES: Final = (2, 3)


class Bodies:
    """The bodies of the code section. Functions count from the first that is not imported."""

    def __init__(self, section: Section, data: bytes, *, limits: Limits) -> None:
        """Raises ContentRejected (`WasmInvalid`) when the bodies do not fill the section."""
        self._data = data
        self._most = self._left = limits.body_bytes
        reader = section.reader(data)
        count = 0 if reader.done else reader.u32()
        if count > reader.end - reader.position:
            raise invalid("more function bodies than the section has bytes", at=reader.position)
        self._starts = array("I")
        self._ends = array("I")
        for _ in range(count):
            size = reader.u32()
            self._starts.append(reader.position)
            reader.skip(size)
            self._ends.append(reader.position)

    def __len__(self) -> int:
        return len(self._starts)

    def span(self, function: int) -> tuple[int, int]:
        """Start and end of a function's body in the module. Raises IndexError."""
        return self._starts[function], self._ends[function]

    def containing(self, byte: int) -> Iterator[int]:
        """The functions with `byte` anywhere in their bodies: all with this instruction, and others."""
        find, starts, ends = self._data.find, self._starts, self._ends
        # One search passes over many bodies without the byte, instead of one search for each body.
        position = function = 0
        while function < len(starts):
            if position < starts[function]:
                position = find(byte, starts[function])
                if position < 0:
                    return
            if position < ends[function]:
                yield function
            function += 1

    def read(self, function: int, wanted: Collection[int]) -> Iterator[tuple[int, int]]:
        """The `wanted` instructions of a function in order, each with its operand.

        The operand is the instruction's first index (function, type, label); for `br_table` and `try_table` the greatest
        label, -1 if there is none. Raises ContentRejected: `WasmInvalid`, `TooLarge`.
        """
        start, end = self.span(function)
        self._left -= end - start
        if self._left < 0:
            raise too_many("bytes of functions to be read", self._most, self._most)
        reader = BinaryReader(self._data, start, end)
        for _ in range(reader.u32()):
            reader.u32()
            _skip_value_type(reader)
        try:
            yield from _instructions(reader, wanted)
        except IndexError as error:
            raise invalid("a function body without an end", at=end) from error
        if reader.position != end:
            raise invalid("a function body that ends within an instruction", at=end)


def _instructions(reader: BinaryReader, wanted: Collection[int]) -> Iterator[tuple[int, int]]:
    """The frequent forms are read without function calls: three million instructions a second."""
    data, position, end, forms = reader.data, reader.position, reader.end, _FORMS
    while position < end:
        code = data[position]
        position += 1
        form = forms[code]
        operand = 0
        if form == _ONE:
            operand = data[position]
            position += 1
            if operand & 0x80:
                operand, position = _integer(data, position - 1)
        elif form in (_MEMORY, _TWO):
            operand = data[position]
            position += 1
            if operand & 0x80:
                operand, position = _integer(data, position - 1)
            if form == _MEMORY and operand & _MEMORY_INDEX:
                _, position = _integer(data, position)
            _, position = _integer(data, position)
        elif form == _BYTES:
            position += 4 if code == 0x43 else 8
        elif form != _NOTHING:
            reader.position = position
            code, operand = _read_rare(reader, code, form)
            position = reader.position
        if code in wanted:
            yield code, operand
    reader.position = position


def _integer(data: bytes, position: int) -> tuple[int, int]:
    """A LEB128 integer, read as unsigned, and the position after it."""
    value = shift = 0
    for _ in range(_MAX_LEB_BYTES):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise invalid("an integer longer than 64 bits", at=position)


def _read_rare(reader: BinaryReader, code: int, form: int) -> tuple[int, int]:
    """Read an instruction with a prefix or a list, after its first byte. Returns the whole code and the operand."""
    if form == _LABELS:
        return code, max(reader.u32() for _ in range(reader.u32() + 1))
    if form == _TYPES:
        for _ in range(reader.u32()):
            _skip_value_type(reader)
        return code, 0
    if form == _CATCHES:
        reader.skip_s33()  # the type of the block
        return code, max((_read_clause(reader) for _ in range(reader.u32())), default=-1)
    if form == _UNKNOWN:
        raise invalid(f"unknown instruction {code:#04x}", at=reader.position - 1)
    number = reader.u32()
    whole = code << 8 | number
    operand = 0
    if code == 0xFB:
        operand = _read_collected(reader, number)
    elif code == 0xFC and number < len(_BULK):
        for _ in range(_BULK[number]):
            reader.u32()
    elif code == 0xFD and number < _VECTOR_END:
        _skip_vector(reader, number)
    elif code == 0xFE and number == 3:  # the fence
        reader.skip(1)
    elif code == 0xFE and (number < 3 or 0x10 <= number < _ATOMIC_END):
        _skip_address(reader)
    else:
        raise invalid(f"unknown instruction {whole:#06x}", at=reader.position - 1)
    return whole, operand


def _read_clause(reader: BinaryReader) -> int:
    """The label of a clause of `try_table`."""
    if reader.byte() not in _CATCH_ALL_CLAUSES:
        reader.u32()  # the tag
    return reader.u32()


def _read_collected(reader: BinaryReader, number: int) -> int:
    """Read the operands of an instruction on garbage-collected types. Returns the label of a branch, else 0."""
    if number < len(_COLLECTED):
        for _ in range(_COLLECTED[number]):
            reader.u32()
    elif number in (20, 21, 22, 23):  # ref.test, ref.cast
        reader.skip_s33()
    elif number in (24, 25):  # br_on_cast, br_on_cast_fail
        reader.skip(1)
        label = reader.u32()
        reader.skip_s33()
        reader.skip_s33()
        return label
    elif not 26 <= number <= 30:  # conversions, ref.i31, i31.get
        raise invalid(f"unknown instruction {0xFB00 | number:#06x}", at=reader.position - 1)
    return 0


def _skip_vector(reader: BinaryReader, number: int) -> None:
    if number <= 11 or 84 <= number <= 93:
        _skip_address(reader)
    if number in (12, 13):  # v128.const, i8x16.shuffle
        reader.skip(16)
    elif 21 <= number <= 34 or 84 <= number <= 91:
        reader.skip(1)  # the lane


def _skip_address(reader: BinaryReader) -> None:
    if reader.u32() & _MEMORY_INDEX:
        reader.u32()
    reader.u64()


def _skip_value_type(reader: BinaryReader) -> None:
    if reader.byte() in (0x63, 0x64):
        reader.skip_s33()
