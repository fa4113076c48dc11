"""The lines of a text file, in the encoding that the whole file speaks for."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from common.errors import ConfigurationError, DataError
from data_prep.readers.unpacked import open_bytes

BLOCK = 1 << 20
SAMPLE = 1 << 18
"""Bytes of lines that are not UTF-8 from which their encoding is told."""
FEW = 100
"""Fewer odd bytes than these tell no encoding: they are read as Windows-1252, the usual one beside UTF-8."""
WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
_MARKS = (  # of UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ASCII = bytes(range(128))
_LINE_END = re.compile(rb"\r\n?|\n")


@dataclass(frozen=True)
class Encoding:
    """How a file's lines are decoded.

    Attributes:
        codec: of the file.
        odd: codec of lines that are not UTF-8 in a file of UTF-8.
        line_ends: what may end a line: `\\n` (also after `\\r`), `\\r`, or both, where the file has both.
        remark: what was decided on evidence; empty for plain UTF-8.
    """

    codec: str
    odd: str
    line_ends: tuple[str, ...]
    remark: str = ""


def find_encoding(path: Path, chosen: str | None = None) -> Encoding:
    """Tell a file's encoding from all of it: its mark, NULs, what decodes, and what makes words (chardet).

    Raises:
        ConfigurationError: there is no codec `chosen`.
        DataError: no encoding fits.
    """
    with open_bytes(path) as file:
        head = file.read(BLOCK)
    codec, remark = _stated(head, chosen)
    if codec is None and b"\0" in head:
        codec = _detected(head[: SAMPLE - SAMPLE % 4])
        codec = codec if codec in WIDE else None
        remark = f"read as {codec.upper()}, without a byte-order mark" if codec else ""
    if codec in WIDE:
        return Encoding(codec, codec, _wide_line_ends(path, codec), remark)
    return _narrow(path, codec, remark)


def _stated(head: bytes, chosen: str | None) -> tuple[str | None, str]:
    """The codec that was asked for or that a mark names."""
    if chosen is not None:
        try:
            return codecs.lookup(chosen).name, f"read as {chosen}, as asked"
        except LookupError:
            raise ConfigurationError(f"there is no encoding {chosen!r}: name one as utf-8, cp1251, gb18030.") from None
    return next(((codec, "") for mark, codec in _MARKS if head.startswith(mark)), (None, ""))


def _narrow(path: Path, codec: str | None, remark: str) -> Encoding:
    """Of a file that keeps ASCII as it is: UTF-8, or another encoding of all its lines or of some."""
    right = wrong = feeds = returns = 0
    sample = bytearray()
    with open_bytes(path) as file:
        for stretch in _stretches(file):
            feeds += stretch.count(b"\n")
            returns += stretch.count(b"\r") - stretch.count(b"\r\n")
            if codec is not None or stretch.isascii():
                continue
            if _is_utf8(stretch):
                right += _odd_bytes(stretch)
                continue
            for line in _LINE_END.split(stretch):
                if _is_utf8(line):
                    right += _odd_bytes(line)
                else:
                    wrong += _odd_bytes(line)
                    if len(sample) < SAMPLE:
                        sample += line + b"\n"
    line_ends = ("\n",) if not returns else ("\r",) if not feeds else ("\n", "\r")
    if codec is not None or not wrong:
        return Encoding(codec or "utf-8", "cp1252", line_ends, remark)
    odd = _detected(bytes(sample)) if wrong >= FEW else "cp1252"
    if odd is None or odd in WIDE:
        if wrong > right:
            raise DataError(
                f"{path} is in no encoding that could be told: export it as UTF-8, or name it (--encoding)."
            )
        odd = "cp1252"
    if wrong > right and wrong >= FEW:
        return Encoding(odd, odd, line_ends, f"read as {odd}")
    return Encoding("utf-8", odd, line_ends, f"read as UTF-8, and as {odd} where a line is not UTF-8")


def _stretches(file: BinaryIO) -> Iterator[bytes]:
    """A file in whole lines, about a mebibyte at a time."""
    rest: list[bytes] = []
    for block in iter(partial(file.read, BLOCK), b""):
        cut = max(block.rfind(b"\n"), block.rfind(b"\r", 0, len(block) - 1)) + 1
        if cut:
            yield b"".join((*rest, block[:cut]))
            rest = [block[cut:]]
        else:
            rest.append(block)
    yield b"".join(rest)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _odd_bytes(data: bytes) -> int:
    """How many bytes are not ASCII."""
    return len(data.translate(None, _ASCII))


def _detected(data: bytes) -> str | None:
    import chardet

    encoding = chardet.detect(data)["encoding"]
    return codecs.lookup(encoding).name if encoding is not None else None


def _wide_line_ends(path: Path, codec: str) -> tuple[str, ...]:
    feeds = returns = 0
    with io.TextIOWrapper(open_bytes(path), codec, errors="replace", newline="") as text:
        for block in iter(partial(text.read, BLOCK), ""):
            feeds += block.count("\n")
            returns += block.count("\r") - block.count("\r\n")
    return ("\n",) if feeds >= returns else ("\r",)


class TextLines:
    """The lines of a text file, with their ends and without NULs; may be read again and again.

    Attributes:
        recoded: lines of the last reading that were not UTF-8 in a file of UTF-8.
    """

    def __init__(self, path: Path, encoding: Encoding, line_end: str = "\n") -> None:
        self.path, self.encoding, self.line_end = path, encoding, line_end
        self.recoded = 0

    def __iter__(self) -> Iterator[str]:
        self.recoded = 0
        lines = self._utf8() if self.encoding.codec == "utf-8" else self._decoded()
        for number, line in enumerate(lines):
            text = line.removeprefix("\ufeff") if number == 0 else line
            yield text.replace("\0", "") if "\0" in text else text

    def _decoded(self) -> Iterator[str]:
        """All in one encoding."""
        with io.TextIOWrapper(
            open_bytes(self.path), self.encoding.codec, errors="replace", newline=self.line_end
        ) as lines:
            yield from lines

    def _utf8(self) -> Iterator[str]:
        with open_bytes(self.path) as file:
            for line in file if self.line_end == "\n" else _split_at_returns(file):
                try:
                    yield line.decode()
                except UnicodeDecodeError:
                    self.recoded += 1
                    yield line.decode(self.encoding.odd, errors="replace")


def _split_at_returns(file: BinaryIO) -> Iterator[bytes]:
    """Lines that end with a carriage return."""
    rest: list[bytes] = []
    for block in iter(partial(file.read, BLOCK), b""):
        first, *more = block.split(b"\r")
        rest.append(first)
        for piece in more:
            yield b"".join(rest) + b"\r"
            rest = [piece]
    if any(rest):
        yield b"".join(rest)
