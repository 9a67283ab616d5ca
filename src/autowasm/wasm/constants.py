"""Constant expressions: initial values, and where segments go.

Not an interpreter. Invariant: of an expression nothing is computed, at most a single number is read, and only so many
instructions are passed over as `limits.type_parts` says.

Source: WebAssembly Core Specification 3.0, section 5.4.9 "Expressions".
"""

from typing import Final

from autowasm.limits import Limits
from autowasm.wasm.binary import Reader, invalid, too_many

_END: Final = 0x0B
_NUMBERS: Final = {0x41: 32, 0x42: 64}
"""i32.const, i64.const, and their bits."""
_REF_FUNC: Final = 0xD2
_INTEGERS: Final = frozenset({0x41, 0x42, 0x23, 0xD0})
"""i32.const, i64.const, global.get, ref.null: each with one LEB128 integer."""
_FIXED: Final = {0x43: 4, 0x44: 8, **dict.fromkeys((0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E), 0)}
"""f32.const, f64.const; the sums, differences and products of integers. The bytes after each."""
_VECTOR, _VECTOR_CONST, _VECTOR_BYTES = 0xFD, 12, 16
_COLLECTED: Final = 0xFB
_COLLECTED_INTEGERS: Final = {0: 1, 1: 1, 6: 1, 7: 1, 8: 2, 26: 0, 27: 0, 28: 0}
"""struct.new, struct.new_default, array.new, array.new_default, array.new_fixed, conversions, ref.i31."""


class Constants:
    """Passes over constant expressions, which validation has found to be some.

    `functions` are those that a `ref.func` in the expressions so far refers to.
    """

    def __init__(self, reader: Reader, *, limits: Limits) -> None:
        self._reader = reader
        self._most = self._left = limits.type_parts
        self.functions: set[int] = set()

    def address(self) -> int | None:
        """The number that an expression consists of, read as an unsigned one; None when it has to be computed."""
        reader = self._reader
        start = reader.position
        bits = _NUMBERS.get(reader.byte())
        if bits:
            value = shift = 0
            while (byte := reader.byte()) & 0x80:
                value |= (byte & 0x7F) << shift
                shift += 7
            value |= (byte & 0x7F) << shift
            if byte & 0x40:
                value -= 1 << (shift + 7)
            if reader.byte() == _END:
                return value % (1 << bits)
        reader.position = start
        self.skip()
        return None

    def skip(self) -> None:
        """To behind the end of one expression."""
        reader = self._reader
        while (code := reader.byte()) != _END:
            self._left -= 1
            if self._left < 0:
                raise too_many("instructions in initial values", self._most, self._most)
            if code in _INTEGERS:
                _skip_integer(reader)
            elif code == _REF_FUNC:
                self.functions.add(reader.u32())
            elif code in _FIXED:
                reader.skip(_FIXED[code])
            elif code == _VECTOR and reader.u32() == _VECTOR_CONST:
                reader.skip(_VECTOR_BYTES)
            elif code == _COLLECTED and (kind := reader.u32()) in _COLLECTED_INTEGERS:
                for _ in range(_COLLECTED_INTEGERS[kind]):
                    reader.u32()
            else:
                raise invalid(
                    f"an initial value with the instruction {code:#x}", at=reader.position
                )


def _skip_integer(reader: Reader) -> None:
    while reader.byte() & 0x80:
        pass
