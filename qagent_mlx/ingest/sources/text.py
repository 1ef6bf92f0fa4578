"""Check text files to their end, and make UTF-8 of other encodings."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from ...errors import QAgentError
from ...utils.settings import SettingError
from .archives import read_chunks
from .source import MAX_LINE

_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Beyond ASCII, what Western European texts and prices hold. Text in another language that was
# read as Windows-1252 has other letters, such as ³ and ¿ for Polish ł and ż.
_WESTERN = frozenset(
    "ÀÁÂÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüÿŒœŠšŽžŸ"
    "€£¥§©®™°²«»‹›„“”‚‘’–—…•·\xa0¡´¼½¾×ªº\xad†‰¨µ"
)
# Words of other alphabets are runs of such bytes.
_RUN = re.compile(rb"[\xc0-\xff]{3}|[\x80-\xff]{5}")
_UTF8_PAIR = re.compile(rb"[\xc3\xc2\xe2][\x80-\xbf]")  # how UTF-8 writes nearly all of those


@dataclass(frozen=True, slots=True)
class TextFile:
    """A checked file of UTF-8 text that DuckDB can read, and its first MiB."""

    path: Path
    compression: str  # none, gzip or zstd, which DuckDB reads
    head: str
    notes: tuple[str, ...] = ()


class _NotTextError(Exception):
    """A byte that does not belong to the encoding."""

    def __init__(self, line: int, byte: int) -> None:
        super().__init__(line, byte)
        self.line, self.byte = line, byte


def python_encoding(name: str) -> str:
    """Python's name of a text encoding.

    Raises:
        SettingError: there is none of that name.
    """
    try:
        codec = codecs.lookup(name)
        "".encode(name)  # no encoding of text: base64, rot13
        return codec.name
    except (LookupError, ValueError, TypeError):
        raise SettingError(
            "encoding",
            f"must be one that Python knows, such as utf-8, cp1252 or utf-16, not {name!r}",
        ) from None


def read_text(
    path: Path, compression: str, name: str, encoding: str, folder: Path, *, lines: bool
) -> TextFile:
    """Read the whole file once, for errors that DuckDB cannot explain.

    UTF-8 stays where it is. Another encoding is decoded into ``folder``: the one that was named,
    UTF-16 that begins with its mark, or Windows-1252 where all letters are Western European.

    Args:
        lines: Whether to refuse lines of over `MAX_LINE`.

    Raises:
        QAgentError: unreadable, empty, cut short, in another encoding, or a line too long.
    """
    codec = python_encoding(encoding)
    notes: tuple[str, ...] = ()
    wide = _wide_encoding(_first_chunk(path, compression, name)) if codec == "utf-8" else None
    if wide is not None:
        codec, notes = wide, (f"{name}: read as UTF-16, as its first bytes say",)
    try:
        if codec in ("utf-8", "utf-8-sig", "ascii"):
            head = _check(path, compression, name, lines)
            return TextFile(path, compression, head, notes)
        if codec == "iso8859-1":  # what is called Latin-1 is nearly always its superset
            codec = "cp1252"
        target = _decode(path, compression, name, codec, folder, lines)
        return TextFile(target, "none", _first_text(target), notes)
    except _NotTextError as error:
        if codec == "cp1252" and python_encoding(encoding) == "iso8859-1":
            target = _decode(path, compression, name, "latin-1", folder, lines)
            return TextFile(target, "none", _first_text(target), notes)
        problem = f"{name} line {error.line}: not {encoding} text (byte 0x{error.byte:02x})"
    if codec != "utf-8" or not _has_western_bytes(path, compression, name):
        raise QAgentError(
            f"{problem}; give the `encoding` that it has, such as cp1252, cp1250, cp1251 or "
            "shift_jis"
        )
    target = _decode(path, compression, name, "cp1252", folder, lines)
    note = f"{problem}; read as Windows-1252 (cp1252), give the `encoding` if it is another"
    return TextFile(target, "none", _first_text(target), (*notes, note))


def _wide_encoding(start: bytes) -> str | None:
    """Whether text is UTF-16: it begins with its mark, or half of its bytes are zeros."""
    if start[:2] in _WIDE_MARKS:
        return "utf-16"
    if len(start) < 8:
        return None
    for codec, zeros, others in (
        ("utf-16-le", start[1:1000:2], start[0:1000:2]),
        ("utf-16-be", start[0:1000:2], start[1:1000:2]),
    ):
        if zeros.count(0) > 0.7 * len(zeros) and others.count(0) == 0:
            return codec
    return None


def _first_chunk(path: Path, compression: str, name: str) -> bytes:
    return next(read_chunks(path, compression, name), b"")


def _first_text(path: Path) -> str:
    return path.read_bytes()[: 1 << 20].decode("utf-8", errors="ignore")


def _check(path: Path, compression: str, name: str, lines: bool) -> str:
    """Read UTF-8 to its end; returns its beginning."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    watch = _Lines(name, limited=lines)
    first = b""
    for chunk in read_chunks(path, compression, name):
        first = first or chunk
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            line = watch.number + error.object[: error.start].count(b"\n")
            raise _NotTextError(line, error.object[error.start]) from None
        watch.add(chunk)
    _end(decoder, name, watch.number)
    if not first.strip():
        raise QAgentError(f"{name} is empty; nothing to ingest")
    return first.decode("utf-8", errors="replace").removeprefix("\ufeff")


def _decode(path: Path, compression: str, name: str, codec: str, folder: Path, lines: bool) -> Path:
    """Write the file as UTF-8 into a folder."""
    decoder = codecs.getincrementaldecoder(codec)()
    watch = _Lines(name, limited=lines)
    target = folder / "decoded"
    empty = True
    with target.open("wb") as file:
        for chunk in read_chunks(path, compression, name):
            try:
                text = decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line = watch.number + error.object[: error.start].count(b"\n")
                raise _NotTextError(line, error.object[error.start]) from None
            decoded = text.removeprefix("\ufeff").encode("utf-8", errors="replace")
            empty = empty and not decoded.strip()
            watch.add(decoded)
            file.write(decoded)
        _end(decoder, name, watch.number)
    if empty:
        raise QAgentError(f"{name} is empty; nothing to ingest")
    return target


def _end(decoder: codecs.IncrementalDecoder, name: str, line: int) -> None:
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise QAgentError(
            f"{name} line {line}: ends inside a character; is it cut short?"
        ) from None


def _has_western_bytes(path: Path, compression: str, name: str) -> bool:
    """Whether the file is Western European text in Windows-1252, and not UTF-8 with some damage."""
    pairs = others = 0
    for chunk in read_chunks(path, compression, name):
        high = chunk.translate(None, delete=bytes(range(128)))
        try:
            letters = set(high.decode("cp1252"))
        except UnicodeDecodeError:
            return False
        in_pairs = 2 * len(_UTF8_PAIR.findall(chunk))
        pairs += in_pairs
        others += len(high) - in_pairs
        if not letters <= _WESTERN or _RUN.search(chunk):
            return False
    return others > pairs


class _Lines:
    """Counts lines, and refuses one without an end."""

    def __init__(self, name: str, *, limited: bool) -> None:
        self.name, self.limited = name, limited
        self.number, self.length = 1, 0  # of the line that is being read

    def add(self, chunk: bytes) -> None:
        """Go on reading."""
        lines = chunk.count(b"\n")
        self.number += lines
        longest = self.length + (chunk.find(b"\n") if lines else len(chunk))
        self.length = len(chunk) - chunk.rfind(b"\n") - 1 if lines else longest
        if self.limited and max(longest, self.length) > MAX_LINE:
            raise QAgentError(
                f"{self.name} line {self.number}: a line of over {MAX_LINE >> 20} MiB; "
                "is this the right file?"
            )


def head_of(path: Path, compression: str, name: str, encoding: str) -> str:
    """The beginning of a text file, to tell its form; bytes that are no text are replaced."""
    chunk = _first_chunk(path, compression, name)
    codec = _wide_encoding(chunk) or python_encoding(encoding)
    return chunk.decode(codec, errors="replace").removeprefix("\ufeff")
