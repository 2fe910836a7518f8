"""Files of lines as bytes of UTF-8, whatever they are packed into: .gz, .zst, UTF-16."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from gradsift.errors import GradsiftError
from gradsift.wording import first_line

COMPRESSED = (".gz", ".zst")
BOM = b"\xef\xbb\xbf"
# Bytes that are looked at to tell the encoding.
_HEAD = 512
_CHUNK = 1 << 20


def uncompressed_name(path: Path) -> Path:
    """Return what a compressed file would be called if it were unpacked."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def open_utf8(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked, and as UTF-8 if it is UTF-16 or UTF-32.

    Bytes of one of these that stand for no character become bytes that are no UTF-8.

    Raises:
        GradsiftError: If it cannot be opened; also while reading, if the archive is broken.
    """
    file = _unpacked(path)
    encoding = _encoding(file.peek(_HEAD)[:_HEAD])
    if encoding is None:
        return file
    with file:
        return io.BytesIO(_as_utf8(file.read(), encoding))


def encoding_of(path: Path) -> str | None:
    """Return utf-16-le and the like, or None for what is read as it is."""
    with _unpacked(path) as file:
        return _encoding(file.peek(_HEAD)[:_HEAD])


def is_empty(path: Path) -> bool:
    """Return whether nothing is in a file."""
    with _unpacked(path) as file:
        return not file.peek(1)


def read_range(file: BinaryIO, start: int, end: int) -> bytes:
    """Read some bytes of a file that may only go forward."""
    if file.seekable():
        file.seek(start)
    else:
        while (left := start - file.tell()) > 0:
            if not file.read(min(left, _CHUNK)):
                break
    return file.read(end - start)


def _unpacked(path: Path) -> io.BufferedReader:
    suffix = path.suffix.lower()
    try:
        if suffix == ".gz":
            return io.BufferedReader(_Archive(path, gzip.open(path, "rb")), _CHUNK)
        if suffix == ".zst":
            packed = pa.input_stream(str(path), compression="zstd")
            return io.BufferedReader(_Archive(path, packed), _CHUNK)
        return path.open("rb")
    except OSError as error:
        raise GradsiftError(f"{path}: cannot be read ({first_line(error)}).") from None


class _Archive(io.RawIOBase):
    """The unpacked bytes of an archive, forward only; says in one line that it is broken."""

    def __init__(self, path: Path, stream: BinaryIO):
        self._path, self._stream, self._at = path, stream, 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        try:
            content = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise GradsiftError(
                f"{self._path}: the archive is broken or cut off after {self._at} unpacked bytes "
                f"({first_line(error)}). Get it again, or unpack what is left of it."
            ) from None
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _encoding(head: bytes) -> str | None:
    for mark, encoding in (
        (b"\xff\xfe\x00\x00", "utf-32-le"),
        (b"\x00\x00\xfe\xff", "utf-32-be"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
    ):
        if head.startswith(mark):
            return encoding
    # Without a mark: a file of rows begins with two characters of ASCII, as a rule.
    zeros = "".join("0" if byte == 0 else "x" for byte in head[:8])
    for begin, encoding in (
        ("x000x000", "utf-32-le"),
        ("000x000x", "utf-32-be"),
        ("x0x0", "utf-16-le"),
        ("0x0x", "utf-16-be"),
    ):
        if zeros.startswith(begin):
            return encoding
    if 0 in head and not _is_utf8(head):
        # Else it has lines, and every character is one.
        for encoding in ("utf-16-le", "utf-16-be"):
            text = head[: len(head) // 2 * 2].decode(encoding, "replace")
            if "\n" in text and "\ufffd" not in text[:-1]:
                return encoding
    return None


def _is_utf8(head: bytes) -> bool:
    # The last character may be cut.
    return "\ufffd" not in head.decode(errors="replace")[:-3]


def _as_utf8(content: bytes, encoding: str) -> bytes:
    width = 4 if encoding.startswith("utf-32") else 2
    whole = len(content) // width * width
    # Half a pair becomes bytes that are no UTF-8, so that its row is told from the others.
    try:
        text = content[:whole].decode(encoding, "surrogatepass")
    except UnicodeDecodeError:
        text = content[:whole].decode(encoding, "replace")
    return text.encode("utf-8", "surrogatepass") + b"\xff" * (whole < len(content))
