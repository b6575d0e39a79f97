"""SPDY/3.1 framing, as far as port-forwarding and remote commands need it: bytes in, frames out, no I/O.

Source: the SPDY Protocol, draft 3.1 (frames in section 2, the header dictionary in 2.6.10.1). There is no flow control here: the
peers that speak this dialect (Kubernetes clients) neither send nor obey WINDOW_UPDATE.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

from msgspec import Struct

from insula.errors import Invalid

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FIN = 1
MAX_FRAME = 16 * 1024 * 1024 - 1
MAX_HEADERS = 256 * 1024

_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length content-location "
    "content-md5 content-range content-type date etag expect expires from host if-match if-modified-since if-none-match "
    "if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range "
    "referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method "
    "get status|200 OK|version|HTTP/1.1|url|public|set-cookie|keep-alive|origin"
)
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,"
    "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _dictionary() -> bytes:
    head, *rest = _WORDS.split("|")
    words = [*head.split(), *rest]
    return b"".join(struct.pack(">I", len(word)) + word.encode() for word in words) + _TAIL.encode()


DICTIONARY = _dictionary()


class Frame(Struct, frozen=True):
    """One frame. `kind` 0 is data; `headers` are set for those that carry them; `data` is the rest of the payload."""

    kind: int
    stream: int
    flags: int
    data: bytes = b""
    headers: Mapping[str, str] | None = None

    @property
    def fin(self) -> bool:
        """The sender says nothing more on this stream."""
        return bool(self.flags & FIN)


class Decoder:
    """One direction's bytes to frames. The header compression context lives as long as the connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._zlib = zlib.decompressobj(zdict=DICTIONARY)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Frames that are whole now. Raises Invalid for what is not SPDY/3.1."""
        self._buffer += data
        while len(self._buffer) >= 8:
            head, flags_length = struct.unpack_from(">II", self._buffer)
            length = flags_length & 0xFFFFFF
            if len(self._buffer) < 8 + length:
                return
            payload = bytes(self._buffer[8 : 8 + length])
            del self._buffer[: 8 + length]
            yield self._frame(head, flags_length >> 24, payload)

    def _frame(self, head: int, flags: int, payload: bytes) -> Frame:
        if not head & 0x80000000:
            return Frame(0, head, flags, payload)
        if (head >> 16) & 0x7FFF != 3:
            raise Invalid(f"SPDY version {(head >> 16) & 0x7FFF} is not spoken here; 3 is")
        kind = head & 0xFFFF
        stream = struct.unpack_from(">I", payload)[0] & 0x7FFFFFFF if len(payload) >= 4 else 0
        if kind == SYN_STREAM:
            return Frame(kind, stream, flags, headers=self._headers(payload[10:]))
        if kind in (SYN_REPLY, HEADERS):
            return Frame(kind, stream, flags, headers=self._headers(payload[4:]))
        return Frame(kind, stream, flags, payload)

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            plain = self._zlib.decompress(block, MAX_HEADERS)
        except zlib.error as fault:
            raise Invalid(f"SPDY header block cannot be read: {fault}") from fault
        if self._zlib.unconsumed_tail:
            raise Invalid(f"SPDY header block is over {MAX_HEADERS} bytes")
        return _parse(plain)


def _parse(plain: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    try:
        (count,) = struct.unpack_from(">I", plain)
        place = 4
        for _ in range(count):
            parts = []
            for _ in range(2):
                (length,) = struct.unpack_from(">I", plain, place)
                if place + 4 + length > len(plain):
                    raise Invalid("SPDY header block is cut short")
                parts.append(plain[place + 4 : place + 4 + length].decode("latin-1"))
                place += 4 + length
            headers[parts[0].lower()] = parts[1]
    except struct.error as fault:
        raise Invalid("SPDY header block is cut short") from fault
    return headers


class Encoder:
    """Frames to bytes. Header blocks are plain zlib without the dictionary, which every peer accepts."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj()

    def data(self, stream: int, data: bytes = b"", *, fin: bool = False) -> bytes:
        """A data frame."""
        return struct.pack(">II", stream, (FIN if fin else 0) << 24 | len(data)) + data

    def reply(self, stream: int, headers: Mapping[str, str] | None = None) -> bytes:
        """Accept a stream."""
        return self._control(SYN_REPLY, 0, struct.pack(">I", stream) + self._block(headers or {}))

    def reset(self, stream: int, status: int = 5) -> bytes:
        """Give a stream up (5: cancel)."""
        return self._control(RST_STREAM, 0, struct.pack(">II", stream, status))

    def ping(self, payload: bytes) -> bytes:
        """Send a ping back as it came."""
        return self._control(PING, 0, payload)

    def syn(self, stream: int, headers: Mapping[str, str], *, fin: bool = False) -> bytes:
        """Open a stream (what a client does)."""
        return self._control(SYN_STREAM, FIN if fin else 0, struct.pack(">IIH", stream, 0, 0) + self._block(headers))

    def _block(self, headers: Mapping[str, str]) -> bytes:
        plain = struct.pack(">I", len(headers))
        for name, value in headers.items():
            for text in (name.encode("latin-1"), value.encode("latin-1")):
                plain += struct.pack(">I", len(text)) + text
        return self._zlib.compress(plain) + self._zlib.flush(zlib.Z_SYNC_FLUSH)

    def _control(self, kind: int, flags: int, payload: bytes) -> bytes:
        return struct.pack(">HHI", 0x8003, kind, flags << 24 | len(payload)) + payload
