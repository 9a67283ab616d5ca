"""Data and elements that a module puts into its memories and tables when it starts.

Not what they hold, nor a run of the module. Invariant: only what is sure to trap is refused: an active segment at a fixed
place, beyond the end of a memory or table as it is at the start. Envoy then fails to load the module, after having fetched it.

Source: WebAssembly Core Specification 3.0, sections 5.5.12 "Element Section", 5.5.14 "Data Section" and 4.7.2 "Instantiation".
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm import sections
from autowasm.wasm.binary import Reader
from autowasm.wasm.constants import Constants
from autowasm.wasm.storage import Storage
from autowasm.wasm.values import read_value_type

_PAGE: Final = 65_536
_PASSIVE, _EXPLICIT, _EXPRESSIONS = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Segment:
    """One that is put at a fixed place. `offset` and `size` in bytes of the memory, or entries of the table, `target`."""

    number: int
    target: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.offset + self.size


def read_data(reader: Reader, *, limits: Limits) -> Iterator[Segment]:
    """The data segments at fixed places. Raises ContentRejected: `TooLarge`, `WasmInvalid`."""
    constants = Constants(reader, limits=limits)
    for number in range(reader.u32()):
        flags = reader.u32()
        target = reader.u32() if flags & _EXPLICIT else 0
        offset = None if flags & _PASSIVE else constants.address()
        size = reader.u32()
        reader.skip(size)
        if offset is not None:
            yield Segment(number, target, offset, size)


def read_elements(reader: Reader, *, limits: Limits) -> Iterator[Segment]:
    """The element segments at fixed places, of the first `limits.type_parts` elements. Raises as `read_data`."""
    constants = Constants(reader, limits=limits)
    left = limits.type_parts
    for number in range(reader.u32()):
        flags = reader.u32()
        is_active = not flags & _PASSIVE
        target = reader.u32() if is_active and flags & _EXPLICIT else 0
        offset = constants.address() if is_active else None
        if flags & (_PASSIVE | _EXPLICIT):
            read_value_type(reader) if flags & _EXPRESSIONS else reader.byte()
        size = reader.u32()
        if offset is not None:
            yield Segment(number, target, offset, size)
        left -= size
        if left < 0:
            return  # what comes after is not looked at; no compiler writes so many
        for _ in range(size):
            constants.skip() if flags & _EXPRESSIONS else reader.u32()


def check_segments(kind: str, segments: Iterable[Segment], storages: Sequence[Storage]) -> None:
    """Raise ContentRejected (`WasmInvalid`) over the first that does not fit. `storages` with the imported ones first."""
    for each in segments:
        storage = storages[each.target]  # validation has found it to be there
        if kind == sections.MEMORY:
            what, unit, room = "data segment", "bytes", storage.minimum * _PAGE
        else:
            what, unit, room = "element segment", "entries", storage.minimum
        if each.end > room:
            raise ContentRejected(
                f"the module's {what} {each.number} ends at {each.end} of a {kind} that begins with {room} {unit}, "
                f"and Envoy fails to start such a module: make the initial {kind} larger, or build it again",
                reason="WasmInvalid",
            )
