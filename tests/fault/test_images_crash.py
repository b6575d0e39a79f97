"""kill -9 at any moment of a pull, of a removal's sweep; and a machine that lost its power before new images were on its disk."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.contract.images_support import chunks, docker_archive, layer_tar, left_over
from tests.host.registry_support import Scripted, serving
from tests.host.test_registry import publish

from insula.errors import NotFound
from insula.images.metadata import Catalog
from insula.images.store import NodeImages

pytestmark = pytest.mark.root

PROLOGUE = """
    import asyncio, os, sys
    from pathlib import Path
    from insula.images.store import NodeImages
    async def main():
        store = await NodeImages.open(Path(sys.argv[1]))
        await store.recover()
        print("ready", flush=True)
"""


@pytest.fixture
async def data(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path / "data"


def child_of(body: str, *words: str) -> subprocess.Popen[str]:
    """A process that opens the store and does something with it."""
    script = textwrap.dedent(PROLOGUE) + textwrap.indent(textwrap.dedent(body), "    ") + "\nasyncio.run(main())\n"
    return subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.PIPE, text=True)


async def killed(child: subprocess.Popen[str], after_ms: float) -> str:
    """Kill it some time after it is ready; what it said by then."""
    assert child.stdout is not None
    assert await asyncio.to_thread(child.stdout.readline) == "ready\n"
    await asyncio.sleep(after_ms / 1000)
    child.send_signal(signal.SIGKILL)
    said = await asyncio.to_thread(child.stdout.read)
    child.stdout.close()
    await asyncio.to_thread(child.wait)
    return said


@pytest.mark.parametrize("after_ms", [10, 30, 60, 100, 150, 250])
async def test_killed_at_any_moment_of_a_pull(data: Path, after_ms: int) -> None:
    files: dict[str, bytes | None] = {f"d{number}/f": os.urandom(2000) for number in range(800)}
    registry = Scripted()

    def prepare() -> dict[str, Any]:
        return publish(registry, [layer_tar(files), layer_tar({"top": os.urandom(500_000)})])

    manifest = await asyncio.to_thread(prepare)
    async with serving(registry.app()) as domain:
        name = f"{domain}/x:1"
        child = child_of('await store.pull(sys.argv[2])\nprint("pulled", flush=True)', str(data), name)
        said = await killed(child, after_ms)
        again = await NodeImages.open(data)
        await again.recover()
        assert os.listdir(data / "tmp") == []
        if "pulled" in said:
            assert (await again.get(name)).names == (name,)
        elif not await again.list():
            assert left_over(data) == []
        whole = {
            layer["digest"]
            for layer in manifest["layers"]
            if (part := data / "blobs/partial" / layer["digest"][7:]).exists() and part.stat().st_size == layer["size"]
        }
        registry.requests.clear()
        image = await again.pull(name)
        assert not [path for _, path, _ in registry.requests if path.rpartition("/")[2] in whole]
    rootfs = await again.mount(image, "i1")
    assert (Path(rootfs.path) / "d799/f").read_bytes() == files["d799/f"]
    await again.unmount("i1", remove=True)
    await again.remove(name)
    await again.close()
    assert left_over(data) == [] and os.listdir(data / "blobs/partial") == []


STEPS = ["metadata", "blob", "layer", "trash"]


@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_each_step_of_a_sweep(data: Path, step: str) -> None:
    """The process ends itself where a removal takes its next step."""
    base, top = layer_tar({"base": b"b" * 10_000}), layer_tar({"top": b"t"})
    store = await NodeImages.open(data)
    await store.load(chunks(docker_archive([base], ["kept:1"])))
    await store.load(chunks(docker_archive([base, top], ["gone:1"])))
    await store.close()
    body = f"""
        import insula.images.blobs as blobs, insula.images.layers as layers, insula.images.metadata as metadata
        def end(*_, **__):
            os._exit(9)
        places = {{
            "metadata": (metadata.Metadata, "_write"),
            "blob": (blobs.Blobs, "delete"),
            "layer": (layers.Layers, "_drop"),
            "trash": (blobs.Blobs, "empty_trash"),
        }}
        setattr(*places["{step}"], end)
        await store.remove("gone:1")
    """
    child = child_of(body, str(data))
    assert child.stdout is not None
    await asyncio.to_thread(child.stdout.read)
    child.stdout.close()
    assert await asyncio.to_thread(child.wait) == 9
    again = await NodeImages.open(data)
    await again.recover()
    kept = await again.get("kept:1")
    assert Path(await again.file(kept, "/base")).read_bytes() == b"b" * 10_000
    if step == "metadata":
        assert (await again.get("gone:1")).names == ("gone:1",)
        await again.remove("gone:1")
    with pytest.raises(NotFound):
        await again.get("gone:1")
    assert len(left_over(data)) == 3  # a configuration, a blob and an unpacked layer
    await again.close()


async def test_power_is_lost_before_the_disk_has_an_image(data: Path) -> None:
    """Another boot finds images that were not safe: sound ones stay, damaged ones go, and the rest is not read again."""
    store = await NodeImages.open(data)
    contents = {name: layer_tar({name: os.urandom(5000)}) for name in ("sound", "zeros", "safe")}
    for name, layer in contents.items():
        await store.load(chunks(docker_archive([layer], [f"{name}:1"])))
    layers = {name: store._content.entry((await store.get(f"{name}:1")).id).layers[0] for name in contents}
    catalog = store._content.catalog
    safe = (await store.get("safe:1")).id
    await store.close()

    def as_found(before: Catalog) -> Catalog:
        from msgspec.structs import replace

        return replace(
            before,
            images={
                key: replace(entry, boot="" if key == safe else "an-earlier-boot")
                for key, entry in before.images.items()
            },
        )

    again = await NodeImages.open(data)
    await again._content.metadata.change(as_found)
    for name in ("zeros", "safe"):
        path = again._content.blobs.path(layers[name].digest)
        path.write_bytes(bytes(path.stat().st_size))
    await again.close()
    third = await NodeImages.open(data)
    await third.recover()
    assert sorted(name for image in await third.list() for name in image.names) == ["safe:1", "sound:1"]
    assert len(catalog.images) == 3
    await third.close()
