"""The members of a tar archive, one after the other, from a stream that a stranger sends.

Reads forward only and in bounded memory: a header may not ask for more than `HEADER_BYTES`, a size may not be negative, an end
must be a real end.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from typing import Any

from insula.errors import Invalid, TooLarge
from insula.host.tarstream import CHUNK, Source

HEADER_BYTES = 8 * 1024 * 1024  # one member's headers: long names, PAX records, sparse maps
_BLOCK = 512


class _Forward:
    """The file that `tarfile` sees: it can only go forward, and its own reads (headers) are bounded."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0
        self._last = b""
        self.header_left = HEADER_BYTES
        self.padding_from = sys.maxsize  # where the content of the present member ends, once that is known

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("a member begins before the end of the one before it")
        self.skip(position - self._position)

    def skip(self, count: int) -> None:
        while count > 0:
            data = self._source.read(min(count, CHUNK))
            if not data and self._position >= self.padding_from:
                self._position += count  # docker's own client leaves out the padding behind the last member
                return
            if not data:
                raise _cut_short()
            count -= len(data)
            self._position += len(data)

    def some(self, size: int) -> bytes:
        """Between 1 and `size` bytes of a member's content."""
        data = self._source.read(size)
        if not data:
            raise _cut_short()
        self._position += len(data)
        return data

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes of a header, fewer at the end of the archive."""
        self.header_left -= size
        if size < 0 or self.header_left < 0:
            raise TooLarge(f"the headers of a member are larger than {HEADER_BYTES} bytes")
        parts = []
        padding = size == 1 and self._position >= self.padding_from and self._position % _BLOCK
        while size > 0 and (data := self._source.read(size)):
            parts.append(data)
            size -= len(data)
            self._position += len(data)
        if padding and not parts:  # `tarfile` reads the last byte of the padding, which may be left out
            self._position += 1
            return b"\0"
        self._last = b"".join(parts)
        return self._last

    def check_end(self) -> None:
        """`tarfile` takes a header that it cannot read for the end; a real one is a block of zeros or nothing."""
        if self._last and (len(self._last) != _BLOCK or any(self._last)):
            raise Invalid("the archive is damaged: a header has a wrong checksum")


def _cut_short() -> Invalid:
    return Invalid("the archive ends in the middle of a member: it is cut short")


class Members:
    """The members of a tar in their order. Content must be taken, or left, before the next one is asked for."""

    def __init__(self, source: Source) -> None:
        self._file = _Forward(source)
        self._source = source
        self._end = sys.maxsize

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Raises Invalid (damaged, cut short), TooLarge (headers)."""
        try:
            # Untyped: `members` and `next` are documented for streaming, but not in the standard library's stubs.
            archive: Any = tarfile.TarFile(fileobj=self._file, errors="surrogateescape")  # type: ignore[arg-type]
        except (tarfile.TarError, ValueError, UnicodeError) as error:
            if "empty file" in str(error):
                return
            raise Invalid(f"this is not a tar archive: {error}") from None
        while (member := self._next(archive)) is not None:
            yield member
        self._file.check_end()

    def _next(self, archive: Any) -> tarfile.TarInfo | None:
        archive.members = []  # it would remember every one
        self._file.padding_from = self._end
        self._end = sys.maxsize
        try:
            member: tarfile.TarInfo | None = archive.next()
        except (tarfile.TarError, ValueError, UnicodeError, OverflowError, IndexError, KeyError) as error:
            raise Invalid(f"the archive is damaged: {error}") from None
        self._file.header_left = HEADER_BYTES
        if member is not None and (member.size < 0 or member.offset_data < 0):
            raise Invalid(f"the size of {member.name!r} in the archive is negative")
        if member is not None and member.sparse is None:
            self._end = member.offset_data + (member.size if member.isreg() else 0)
        return member

    def content(self, member: tarfile.TarInfo) -> Iterator[tuple[int, bytes]]:
        """The content of the present member in pieces, each with its offset in the file: holes are left out."""
        for offset, size in self._extents(member):
            while size > 0:
                data = self._file.some(min(size, CHUNK))
                yield offset, data
                offset += len(data)
                size -= len(data)

    @staticmethod
    def _extents(member: tarfile.TarInfo) -> list[tuple[int, int]]:
        sparse: Any = member.sparse  # a list of pairs, whatever the standard library's stubs say
        if sparse is None:
            return [(0, member.size)]
        end = 0
        extents = [(offset, size) for offset, size in sparse if size]  # GNU's old format pads the map with nothing
        for offset, size in extents:
            if offset < end or size < 0 or offset + size > member.size:
                raise Invalid(f"the sparse map of {member.name!r} in the archive is wrong")
            end = offset + size
        return extents

    def drain(self) -> None:
        """Read the padding after the end, so that the whole stream has been hashed."""
        while self._source.read(CHUNK):
            pass
