"""Content by digest: `blobs/sha256/<hex>`, written under a temporary name, verified while written, then renamed.

What comes from a registry is written to `blobs/partial/<hex>`, so that a pull that was cut short, by whatever, goes on there;
when whole it is linked, not renamed, and the first name goes when an image has been written down that needs it.

A blob that is there is whole and right, unless the machine itself lost its power since: then the images that were not yet
written back to the disk are read whole at the next start and dropped where they are damaged, see `content.py`; a blob that no
image needs is swept. Unpacked layers need no such care: they can be made again from the blobs, see `layers.py`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from insula.errors import HostFault, Invalid, TooLarge
from insula.host.folders import entries
from insula.host.rmtree import remove_tree
from insula.host.tarstream import CHUNK, Source
from insula.tasks import in_thread

_BATCH = 1024 * 1024
_PARTIAL_S = 24 * 3600.0  # how long a download that was cut short waits for somebody to ask again


def digest_of(data: bytes) -> str:
    """`sha256:...`"""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Blobs:
    """The blobs of one node below `folder`; `temporary` is a folder on the same file system."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self._folder = folder / "sha256"
        self._partial = folder / "partial"
        self._temporary = temporary
        for each in (self._folder, self._partial, self._temporary):
            each.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where a blob is, or would be."""
        return self._folder / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        """Whether it is here, whole."""
        return self.path(digest).exists()

    def size(self, digest: str) -> int:
        """In bytes. Raises FileNotFoundError."""
        return self.path(digest).stat().st_size

    def read(self, digest: str, *, limit: int = 16 * 1024 * 1024) -> bytes:
        """A small blob whole. Raises TooLarge, FileNotFoundError."""
        if self.size(digest) > limit:
            raise TooLarge(f"the blob {digest} is larger than {limit} bytes")
        return self.path(digest).read_bytes()

    def put(self, data: bytes) -> str:
        """Keep a small blob. Returns its digest. Blocks."""
        digest = digest_of(data)
        if not self.has(digest):
            writer = self.writer()
            writer.write(data)
            writer.commit(digest)
        return digest

    def put_stream(self, source: Source) -> tuple[str, int]:
        """Keep what a blocking stream gives. Returns digest and size. Blocks."""
        writer = self.writer()
        try:
            while data := source.read(CHUNK):
                writer.write(data)
            return writer.commit(), writer.size
        finally:
            writer.abort()

    def writer(self) -> BlobWriter:
        """Begin a blob of unknown digest. Its calls block."""
        return BlobWriter(self, self.temporary_path("blob"))

    def resume(self, digest: str) -> BlobWriter:
        """Begin a blob of known digest, or go on where an earlier attempt was cut short, even by a crash. Blocks: what is there
        is hashed again, by its `begin`. One at a time for each digest; content that turns out wrong is for the caller to drop."""
        return BlobWriter(self, self._partial / digest.removeprefix("sha256:"), resume=True)

    def settle(self, digests: Iterable[str]) -> None:
        """An image needs these now: what was kept in case that its download is asked for again may go. Blocks."""
        for digest in digests:
            (self._partial / digest.removeprefix("sha256:")).unlink(missing_ok=True)

    def drop_partial(self, older_than_s: float) -> int:
        """Give up downloads that nobody has gone on with for so long. Returns the bytes that this frees. Blocks."""
        freed = 0
        for entry in entries(self._partial):
            with suppress(FileNotFoundError):
                found = entry.stat()
                if time.time() - found.st_mtime >= older_than_s:
                    freed += found.st_blocks * 512 if found.st_nlink == 1 else 0
                    Path(entry.path).unlink()
        return freed

    def temporary_path(self, kind: str) -> Path:
        """A new name on the file system of the blobs; removed by `recover` if it is left."""
        return self._temporary / f"{kind}-{secrets.token_hex(8)}"

    def delete(self, digest: str) -> None:
        """Remove a blob. Repeatable."""
        self.path(digest).unlink(missing_ok=True)

    def all(self) -> Iterator[str]:
        """The digests of all blobs."""
        for entry in entries(self._folder):
            yield "sha256:" + entry.name

    async def stream(self, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        """A blob's content from `offset` on."""
        file = await in_thread(open, self.path(digest), "rb")
        try:
            file.seek(offset)
            while data := await in_thread(file.read, _BATCH):
                yield data
        finally:
            file.close()

    def recover(self) -> None:
        """Drop what a killed process left half written, but for downloads that can be resumed. Blocks."""
        self._empty("")
        self.drop_partial(_PARTIAL_S)

    def empty_trash(self) -> None:
        """Delete what was moved to a `temporary_path("trash")`: that can take long. Blocks."""
        self._empty("trash")

    def _empty(self, prefix: str) -> None:
        for entry in entries(self._temporary):
            if not entry.name.startswith(prefix):
                continue
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)

    def verify(self, digest: str) -> None:
        """Read a blob whole. Blocks. Raises Invalid when it is damaged, FileNotFoundError."""
        with self.path(digest).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if f"sha256:{found}" != digest:
            raise Invalid(f"the blob {digest} is damaged")


class BlobWriter:
    """One blob on its way in."""

    def __init__(self, blobs: Blobs, path: Path, *, resume: bool = False) -> None:
        self._blobs = blobs
        self.path = path
        self._hash = hashlib.sha256()
        self._keeps = resume
        self._file = -1
        self.size = 0
        self.expected_bytes: int | None = None
        self._open = False
        if not resume:
            self.begin()

    def begin(self) -> None:
        """Open it, and take in what is there. Raises HostFault."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if self._keeps else os.O_EXCL)
        try:
            self._file = os.open(self.path, flags, 0o600)
            self._open = True
            while self._keeps and (data := os.read(self._file, _BATCH)):
                self._hash.update(data)
                self.size += len(data)
        except OSError as error:
            raise disk_fault(error, "write a blob") from None

    def write(self, data: bytes) -> None:
        """Add bytes. Raises TooLarge over the expected size, HostFault (the disk)."""
        self.size += len(data)
        if self.expected_bytes is not None and self.size > self.expected_bytes:
            raise TooLarge(f"the blob is longer than the {self.expected_bytes} bytes that were announced")
        self._hash.update(data)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise disk_fault(error, "write a blob") from None

    def restart(self) -> None:
        """Forget what was written."""
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.size = 0

    def commit(self, digest: str = "") -> str:
        """Keep it; the disk may have it later. Raises Invalid when the content does not have the promised digest."""
        found = "sha256:" + self._hash.hexdigest()
        if digest and found != digest:
            self._keeps = False
            self.abort()
            raise Invalid(f"the content does not have the digest that was promised: {digest}, but {found}")
        try:
            self._close()
            if self._keeps:
                with suppress(FileExistsError):
                    os.link(self.path, self._blobs.path(found))
            else:
                self.path.rename(self._blobs.path(found))
        except OSError as error:
            raise disk_fault(error, "keep a blob") from None
        return found

    def abort(self, *, drop: bool = False) -> None:
        """Leave it: a download that can be resumed stays, unless it is to be dropped. After `commit` nothing is lost."""
        self._close()
        if drop or not self._keeps:
            with suppress(FileNotFoundError):
                self.path.unlink()

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._file)


def disk_fault(error: OSError, doing: str) -> HostFault:
    """The disk's fault as a sentence."""
    return HostFault(f"cannot {doing}: {os.strerror(error.errno or 0)}", code=error.errno)
