"""A process that is meant to be killed: it opens an engine and walks through an instance's life, saying on stdout what was
acknowledged. `INSULA_CRASH_AT` in its environment names the step at which it kills itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from host.engine_support import IMAGE, Home, config, direct_machine
from insula.engine.building.contract import BuildRequest
from insula.engine.contract import SandboxConfig
from insula.engine.node import NodeEngine
from insula.images import machine as demo
from insula.model.instance import MountConfig, NetworkAttachment, PortMapping, RestartPolicy
from insula.networks.contract import Network

LONG = ("sh", "-c", "trap 'exit 6' TERM; echo up; while :; do sleep 0.02; done")


def say(word: str) -> None:
    print(word, flush=True)


async def life(engine: NodeEngine) -> None:
    """create, start, stop, remove."""
    mounts = (MountConfig(kind="volume", target="/data"),)
    await engine.create(
        config(*LONG, name="web", network_mode="default", mounts=mounts, ports=(PortMapping(container_port=80),))
    )
    say("created")
    await engine.start("web")
    say("started")
    async for _ in engine.logs("web", follow=True):  # now it heeds the signal
        break
    await engine.stop("web", timeout_s=5)
    say("stopped")
    await engine.remove("web", volumes=True)
    say("removed")


async def moving(engine: NodeEngine) -> None:
    """A running instance put on one more network and taken off it."""
    await engine.networks.create(Network(id="", name="extra"))
    await engine.create(config(*LONG, name="web", network_mode="default"))
    await engine.start("web")
    say("started")
    await engine.connect("web", NetworkAttachment(network="extra", aliases=("w",)))
    say("connected")
    await engine.disconnect("web", "extra")
    say("disconnected")
    await asyncio.sleep(3600)


async def short(engine: NodeEngine) -> None:
    """`docker run --rm` of something that ends at once."""
    made = await engine.create(config("sh", "-c", "exit 3", name="web", network_mode="default", auto_remove=True))
    say("created")
    gone = asyncio.create_task(engine.wait(made.id, "removed"))
    await asyncio.sleep(0)
    await engine.start("web")
    say("started")
    await gone
    say("removed")


async def sandbox(engine: NodeEngine) -> None:
    """A sandbox made and removed."""
    await engine.make_sandbox(SandboxConfig(id="pod", hostname="pod"))
    say("made")
    await engine.remove_sandbox("pod")
    say("removed")


async def many(engine: NodeEngine) -> None:
    """Instances of every sort that go on when this process is killed."""
    policy = RestartPolicy(name="unless-stopped")
    await engine.make_sandbox(SandboxConfig(id="pod", hostname="podhost"))
    wanted = [
        config(*LONG, name="plain"),
        config("sh", "-c", "sleep 1; exit 9", name="ends"),
        config("sh", "-c", "sleep 1; exit 9", name="rm", auto_remove=True),
        config("sh", "-c", "sleep 1; exit 9", name="again", restart=policy),
        config(*LONG, name="net", network_mode="default", ports=(PortMapping(container_port=80),)),
        config(*LONG, name="podded", network_mode="sandbox:pod"),
        config(*LONG, name="paused"),
        config(*LONG, name="never"),
    ]
    for each in wanted:
        await engine.create(each)
    await asyncio.gather(*(engine.start(each.name) for each in wanted if each.name != "never"))
    async for _ in engine.logs("paused", follow=True):  # it runs its own program now
        break
    await engine.pause("paused")
    say("running")
    await asyncio.sleep(3600)


async def machine(engine: NodeEngine) -> None:
    """create, start, stop, remove of a machine."""
    await engine.images.add_files_image(demo.NAME, demo.image_files(demo_machine_files()), demo.CONFIG)
    await engine.create(direct_machine(name="web"))
    say("created")
    await engine.start("web")
    say("started")
    await engine.stop("web", timeout_s=0)
    say("stopped")
    await engine.remove("web")
    say("removed")


def demo_machine_files() -> demo.MachineFiles:
    """The built files; the test that starts this has had them built."""
    return demo.MachineFiles(**{key: Path(value) for key, value in json.loads(sys.argv[3]).items()})


async def crowd(engine: NodeEngine) -> None:
    """Many at once."""

    async def one() -> None:
        made = await engine.create(config("sleep", "3600", image=IMAGE))
        await engine.start(made.id)

    await asyncio.gather(*(one() for _ in range(int(sys.argv[3]))))
    say("running")
    await asyncio.sleep(3600)


BUILD = """FROM insula/busybox AS one
WORKDIR /w
COPY a /w/a
RUN --mount=type=cache,target=/c --mount=type=secret,id=s echo one > /w/one
FROM insula/busybox
COPY --from=one /w /w
RUN --mount=target=/ctx,rw cat /w/a > /two && touch /ctx/x
CMD ["cat", "/two"]
"""


class Counting:
    """Progress of a build that kills this process at the event of a number."""

    def __init__(self, last: int) -> None:
        self._left = last

    def vertex(self, vertex: object, /) -> None:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    log = status = warning = vertex


async def secret(_: str) -> bytes:
    """What the steps may see."""
    return b"hidden"


async def build(engine: NodeEngine, last: int | None = None) -> str:
    """Two stages. Returns the image's id."""
    async with engine.builder.workspace() as folder:
        Path(folder.path, "a").write_text("content")
        wish = BuildRequest(context=folder, dockerfile=BUILD, tags=("built",), secret=secret)
        result = await engine.builder.build(wish, Counting(last if last is not None else int(sys.argv[3])))
    say("built")
    return result.built[0].image


async def main() -> None:
    """`python -m ... SCENARIO FOLDER/TAG`."""
    place = Home.at(sys.argv[2])
    engine = await place.open()
    if not await engine.images.list():
        await engine.images.add_demo()
    await {
        "build": build,
        "life": life,
        "moving": moving,
        "short": short,
        "sandbox": sandbox,
        "many": many,
        "crowd": crowd,
        "machine": machine,
    }[sys.argv[1]](engine)
    await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
