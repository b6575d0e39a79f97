"""Layers, unpacked: `layers/<chain>/diff`, one folder for each chain of diff ids, shared by all images that begin with it.

A layer is unpacked under a temporary name, its content verified against its diff id, and renamed: what has the final name
is complete. It is not flushed to disk file by file. Instead its record says in which boot of the machine it was made, and
a flush of the whole file system in the background (`flushing.py`) marks it as safe; after a crash of the machine the unsafe
ones are dropped and made again from their blobs when they are next needed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
from msgspec import Struct

from insula.errors import HostFault, Invalid
from insula.host.folders import entries
from insula.host.rmtree import remove_tree
from insula.host.tarstream import Ahead, Hashing, Source
from insula.host.threads import to_end
from insula.host.untar import unpack
from insula.images.blobs import Blobs
from insula.images.bounded import Bounded
from insula.images.contract import Usage
from insula.tasks import in_thread

log = logging.getLogger(__name__)
_TELL_BYTES = 512 * 1024


class LayerRecord(Struct, frozen=True, kw_only=True):
    """What is known of an unpacked layer. `has_root`: the archive had an entry for `/` itself. `boot` is empty when safe."""

    diff_id: str
    size_bytes: int
    has_root: bool
    boot: str = ""


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The id of each prefix of a list of layers, as the OCI image specification's config.md defines it; hex digits only."""
    chain: list[str] = []
    for diff_id in diff_ids:
        text = f"sha256:{chain[-1]} {diff_id}" if chain else diff_id
        chain.append(hashlib.sha256(text.encode()).hexdigest() if chain else diff_id.removeprefix("sha256:"))
    return chain


def usage_of(images: Mapping[str, Sequence[str]], record: Callable[[str], LayerRecord | None]) -> Usage:
    """What images (their chains by id) take on the disk. May block: records are read when they are first needed."""
    sizes = {
        chain: found.size_bytes if (found := record(chain)) else 0 for chains in images.values() for chain in chains
    }
    users = Counter(chain for chains in images.values() for chain in set(chains))
    return Usage(
        layers_bytes=sum(sizes.values()),
        shared_bytes={
            image: sum(sizes[chain] for chain in set(chains) if users[chain] > 1) for image, chains in images.items()
        },
    )


def boot_id() -> str:
    """Which boot of the machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class _Told:
    """A source that tells how far it was read."""

    def __init__(self, source: Source, progress: Callable[[int], None]) -> None:
        self._source = source
        self._progress = progress
        self._done = self._told = 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._done += len(data)
        if self._done - self._told >= _TELL_BYTES or (not data and self._done > self._told):
            self._told = self._done
            self._progress(self._done)
        return data


class Layers:
    """The unpacked layers of one node."""

    def __init__(self, folder: Path, blobs: Blobs, flush_later: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._flush_later = flush_later
        self._folder.mkdir(parents=True, exist_ok=True)
        self._blobs = blobs
        self.boot = boot_id()
        self._records: dict[str, LayerRecord] = {}
        self._making: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._pool = ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1), thread_name_prefix="insula-unpack")

    def diff(self, chain: str) -> str:
        """The folder that an overlay uses."""
        return str(self._folder / chain / "diff")

    def record(self, chain: str) -> LayerRecord | None:
        """None when this layer is not unpacked."""
        if chain not in self._records:
            with suppress(FileNotFoundError, msgspec.DecodeError):
                text = (self._folder / chain / "layer.json").read_bytes()
                self._records[chain] = msgspec.json.decode(text, type=LayerRecord)
        return self._records.get(chain)

    async def ensure(
        self, chain: str, diff_id: str, blob: str, progress: Callable[[int], None] | None = None
    ) -> LayerRecord:
        """Unpack a layer unless it is there; `progress` is told the bytes of the blob that were read, in a thread. Raises
        Invalid (damaged, wrong diff id), TooLarge, HostFault."""
        lock = self._making.setdefault(chain, asyncio.Lock())
        async with lock:
            if (known := self.record(chain)) is not None:
                return known
            loop = asyncio.get_running_loop()
            record = await to_end(loop.run_in_executor(self._pool, self._make, chain, diff_id, blob, progress))
            self._records[chain] = record
        self.flush_later()
        return record

    def adopt(self, chain: str, folder: Path, record: LayerRecord) -> None:
        """Make a written folder on the same file system the unpacked layer; call `flush_later` afterwards. Where the layer is
        there already the folder is left. Blocks."""
        if self.record(chain) is not None:
            return
        place = self._blobs.temporary_path("layer")
        place.mkdir(mode=0o755)
        (place / "layer.json").write_bytes(msgspec.json.encode(record))
        folder.rename(place / "diff")
        with suppress(FileExistsError, NotADirectoryError):
            place.rename(self._folder / chain)
            self._records[chain] = record
        remove_tree(place, ignore_errors=True)

    def flush_later(self) -> None:
        """Write what is new back to disk in the background."""
        self._flush_later()

    async def ensure_all(self, diff_ids: Sequence[str], blobs: Sequence[str]) -> list[LayerRecord]:
        """Unpack an image's layers, in parallel. Every one has ended when this returns or raises."""
        work = [self.ensure(*each) for each in zip(chain_ids(diff_ids), diff_ids, blobs, strict=True)]
        results = await asyncio.gather(*work, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, LayerRecord)]

    def _make(self, chain: str, diff_id: str, blob: str, progress: Callable[[int], None] | None) -> LayerRecord:
        place = self._blobs.temporary_path("layer")
        (place / "diff").mkdir(parents=True, mode=0o755)
        try:
            with self._blobs.path(blob).open("rb", buffering=0) as file:
                hashing = Hashing(Bounded(_Told(file, progress) if progress else file, self._folder))
                with closing(Ahead(hashing)) as ahead:
                    found = unpack(ahead, str(place / "diff"), overlay=True)
            if hashing.digest != diff_id:
                raise Invalid(f"the layer {blob} unpacks to {hashing.digest}, but the image promises {diff_id}")
            record = LayerRecord(diff_id=diff_id, size_bytes=found.size_bytes, has_root=found.has_root, boot=self.boot)
            (place / "layer.json").write_bytes(msgspec.json.encode(record))
            place.rename(self._folder / chain)
        except FileNotFoundError as error:
            raise HostFault(f"the layer's content is gone: {error.filename}") from None
        finally:
            remove_tree(place, ignore_errors=True)
        return record

    def unsafe(self) -> list[str]:
        """The layers that may not be on the disk yet."""
        return [chain for chain, record in self._records.items() if record.boot]

    def mark_safe(self, chains: Iterable[str]) -> None:
        """The file system was written back after they were unpacked. Blocks."""
        for chain in chains:
            record = self._records.get(chain)
            if record is None:
                continue
            safe = msgspec.structs.replace(record, boot="")
            place = self._folder / chain
            with suppress(FileNotFoundError):  # removed meanwhile
                (place / "layer.json.new").write_bytes(msgspec.json.encode(safe))
                (place / "layer.json.new").rename(place / "layer.json")
            if chain in self._records:
                self._records[chain] = safe

    def sweep(self, keep: set[str]) -> list[str]:
        """Take away the layers that are not in `keep`; `Blobs.empty_trash` deletes them. Returns chain ids. Blocks."""
        gone = [entry.name for entry in entries(self._folder) if entry.name not in keep]
        for chain in gone:
            self._drop(chain)
        return gone

    def _drop(self, chain: str) -> None:
        self._records.pop(chain, None)
        with suppress(FileNotFoundError):
            (self._folder / chain).rename(self._blobs.temporary_path("trash"))

    def recover(self) -> None:
        """After a crash of the machine: drop what may not have reached the disk. Blocks."""
        for entry in entries(self._folder):
            record = self.record(entry.name)
            if record is None or (record.boot and record.boot != self.boot):
                log.warning("dropping a layer that may be incomplete", extra={"chain": entry.name})
                self._drop(entry.name)

    async def close(self) -> None:
        """Wait for what is being unpacked."""
        await in_thread(self._pool.shutdown)
