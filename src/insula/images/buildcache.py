"""The build cache: what a step of a build made, by the hash of all that went into it.

    buildcache/records/<key>.json   one record for each step
              /mounts/<id>          folders of RUN --mount=type=cache

A record is written after the layer that it names and is never flushed: after a crash of the machine a record may be gone or
damaged (a miss), or its layer may be (dropped by `layers.py`, made again from its blob and verified there; a blob that does
not verify is a miss, too). Layers of records are kept from being swept until the cache is pruned.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from insula.host.folders import entries
from insula.host.rmtree import remove_tree
from insula.images.metadata import LayerBlob

_KEY = re.compile(r"[0-9a-f]{64}")
_USE_S = 600
SHARE_OF_DISK = 10  # a tenth of the file system may hold what no image needs


class Record(Struct, frozen=True, kw_only=True):
    """What one step made. `layer` is None for a step that left the root file system alone; `chain` is the layer's chain id where
    it was made. `created` is RFC 3339, `last_used` seconds since the epoch."""

    key: str
    created: str
    parent: str = ""
    description: str = ""
    said: str = ""  # what history says of it
    layer: LayerBlob | None = None
    chain: str = ""
    size_bytes: int = 0
    last_used: float = 0
    uses: int = 0


class CacheMount(Struct, frozen=True, kw_only=True):
    """A folder that RUN steps share from build to build."""

    id: str
    path: str
    size_bytes: int
    created: float
    last_used: float


class BuildCache:
    """All of one node. Its methods block, but for `get` once the records are read."""

    def __init__(self, folder: Path) -> None:
        self._records_folder = folder / "records"
        self._mounts_folder = folder / "mounts"
        self._records: dict[str, Record] | None = None
        self._written: dict[str, float] = {}  # when the use that is on disk was
        self.in_use: dict[str, int] = {}  # ids of cache mounts, and how many steps have them

    def _all(self) -> dict[str, Record]:
        if self._records is None:
            found: dict[str, Record] = {}
            if self._records_folder.is_dir():
                for entry in entries(self._records_folder):
                    with suppress(OSError, msgspec.DecodeError):
                        record = msgspec.json.decode(Path(entry.path).read_bytes(), type=Record)
                        found[record.key] = record
            self._records = found
        return self._records

    @property
    def loaded(self) -> bool:
        """Whether the records have been read."""
        return self._records is not None

    def load(self) -> None:
        """Read the records unless they have been."""
        self._all()

    def get(self, key: str) -> Record | None:
        """What a step of that key made, if it is known."""
        return self._all().get(key)

    def put(self, record: Record) -> None:
        """Keep a record."""
        self._records_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(msgspec.structs.replace(record, last_used=time.time()))

    def touch(self, keys: list[str]) -> None:
        """Say that records were used. Written down now and then only: a crash may forget the newest uses."""
        moment = time.time()
        for key in keys:
            if record := self._all().get(key):
                used = msgspec.structs.replace(record, last_used=moment, uses=record.uses + 1)
                if moment - self._written.setdefault(key, record.last_used) > _USE_S:
                    self._write(used)
                else:
                    self._all()[key] = used

    def _write(self, record: Record) -> None:
        path = self._records_folder / f"{record.key}.json"
        fresh = path.with_suffix(f".{os.getpid()}.new")
        fresh.write_bytes(msgspec.json.encode(record))
        fresh.rename(path)
        self._all()[record.key] = record
        self._written[record.key] = record.last_used

    def drop(self, key: str) -> None:
        """Forget a record. Its layer goes with the next sweep. Repeatable."""
        self._all().pop(key, None)
        self._written.pop(key, None)
        (self._records_folder / f"{key}.json").unlink(missing_ok=True)

    def records(self) -> list[Record]:
        """All, least recently used first."""
        return sorted(self._all().values(), key=lambda each: each.last_used)

    # --- for the sweep --------------------------------------------------------------------------------------------

    def blobs(self) -> set[str]:
        """Blobs that must stay."""
        return {record.layer.digest for record in self._all().values() if record.layer}

    def chains(self) -> set[str]:
        """Unpacked layers that must stay."""
        return {record.chain for record in self._all().values() if record.chain}

    # --- folders of RUN --mount=type=cache ------------------------------------------------------------------------

    def mount_folder(self, id: str, prepare: Callable[[Path], None]) -> str:
        """The folder of a cache mount; a new one is prepared before anybody sees it."""
        place = self._mounts_folder / hashlib.sha256(id.encode()).hexdigest()
        if not place.exists():
            fresh = place.with_name(f"{place.name}.{os.urandom(4).hex()}.new")
            (fresh / "data").mkdir(parents=True, mode=0o755)
            prepare(fresh / "data")
            (fresh / "id").write_text(id)
            with suppress(OSError):  # somebody else was first
                fresh.rename(place)
            remove_tree(fresh, ignore_errors=True)
        os.utime(place / "id")
        return str(place / "data")

    def mounts_in_use(self) -> set[str]:
        """The ids of cache mounts that builds under way have bound."""
        return {hashlib.sha256(id.encode()).hexdigest() for id in self.in_use}

    def mounts(self) -> Iterator[CacheMount]:
        """All cache mounts."""
        if not self._mounts_folder.is_dir():
            return
        for entry in entries(self._mounts_folder):
            if not _KEY.fullmatch(entry.name):
                continue
            with suppress(FileNotFoundError):
                times = Path(entry.path, "id").stat()
                yield CacheMount(
                    id=entry.name,
                    path=entry.path,
                    size_bytes=tree_size(entry.path),
                    created=Path(entry.path).stat().st_mtime,
                    last_used=times.st_mtime,
                )

    def drop_mount(self, id: str) -> None:
        """Delete a cache mount with its content. Repeatable."""
        if _KEY.fullmatch(id):
            remove_tree(self._mounts_folder / id, ignore_errors=True)

    def recover(self) -> None:
        """At start: drop what a killed process left half made."""
        for folder in (self._records_folder, self._mounts_folder):
            if not folder.is_dir():
                continue
            for entry in entries(folder):
                if entry.name.endswith(".new"):
                    if entry.is_dir(follow_symlinks=False):
                        remove_tree(entry.path, ignore_errors=True)
                    else:
                        Path(entry.path).unlink(missing_ok=True)

    def limit_bytes(self) -> int:
        """How much may be held beyond what images need."""
        place = self._records_folder if self._records_folder.is_dir() else Path("/")
        found = os.statvfs(place)
        return found.f_blocks * found.f_frsize // SHARE_OF_DISK


def tree_size(folder: str) -> int:
    """Bytes of the regular files below a folder."""
    total, pending = 0, [folder]
    while pending:
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in entries(pending.pop()):
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total
