"""What a compiled kernel says about itself: registers, stack, parameters. An ELF reader of the few fields needed.

A file that is not one raises; nothing in it is trusted beyond its bounds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from onnx_explain_kernels.errors import ArgumentError

_REGISTERS, _FRAME, _STACK, _PARAMETER, _PARAMETER_2 = 0x2F, 0x11, 0x12, 0x17, 0x45


@dataclass(frozen=True)
class Cubin:
    """`stack`: bytes of local memory per thread (spilled registers included), 0 in every shipped kernel.
    `parameters`: (offset, size) in order.
    """

    registers: int
    stack: int
    parameters: tuple[tuple[int, int], ...]


def read_cubin(code: bytes, name: str) -> Cubin:
    """Read the records of kernel `name`.

    Raises:
        ArgumentError: not a CUDA ELF file, truncated, or without that kernel.

    """
    try:
        sections = _sections(code)
    except (struct.error, IndexError, ValueError) as error:
        raise ArgumentError(f"The machine code of {name} is damaged ({error}); delete it and compile again.") from error
    own, general = sections.get(f".nv.info.{name}"), sections.get(".nv.info", b"")
    if own is None or f".text.{name}" not in sections:
        raise ArgumentError(f"The machine code holds no kernel {name}; delete it and compile again.")
    parameters = {}
    for kind, data in _records(own):
        if kind in (_PARAMETER, _PARAMETER_2) and len(data) >= 12:
            _, ordinal, offset, flags = struct.unpack_from("<IHHI", data)
            parameters[ordinal] = (offset, flags >> 18 if kind == _PARAMETER else flags & 0xFFFF)
    return Cubin(
        _largest(general, _REGISTERS), _largest(general, _FRAME), tuple(parameters[k] for k in sorted(parameters))
    )


def _sections(code: bytes) -> dict[str, bytes]:
    if code[:4] != b"\x7fELF" or code[4] != 2:
        raise ValueError("no 64-bit ELF header")
    offset, size, count, names = (*struct.unpack_from("<Q", code, 40), *struct.unpack_from("<HHH", code, 58))
    headers = [struct.unpack_from("<IIQQQQ", code, offset + k * size) for k in range(count)]
    texts = headers[names]
    table = code[texts[4] : texts[4] + texts[5]]
    found = {}
    for name, kind, _, _, start, length in headers:
        label = table[name : table.index(b"\0", name)].decode("ascii")
        if kind != 8 and start + length > len(code):
            raise ValueError(f"section {label} ends behind the file")
        found[label] = b"" if kind == 8 else code[start : start + length]
    return found


def _records(data: bytes) -> list[tuple[int, bytes]]:
    """(attribute, payload) of an .nv.info section: format 4 carries a length, the others two bytes."""
    found, at = [], 0
    while at + 4 <= len(data):
        form, kind, size = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == 4:
            found.append((kind, data[at : at + size]))
            at += size
    return found


def _largest(data: bytes, wanted: int) -> int:
    """The largest value of an attribute that is kept per function (symbol, value)."""
    values = [struct.unpack_from("<II", d)[1] for kind, d in _records(data) if kind == wanted and len(d) >= 8]
    return max(values, default=0)
