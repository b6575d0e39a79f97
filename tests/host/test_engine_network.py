"""Instances on networks: addresses, names, published ports, shared namespaces, sandboxes."""

from __future__ import annotations

import asyncio
import socket

import pytest

from host.engine_support import Home, config, fetch_page, home, opened, run, until
from insula.engine.contract import SandboxConfig
from insula.engine.node import NodeEngine
from insula.errors import Conflict, Forbidden, NotFound
from insula.model.instance import NetworkAttachment, PortMapping
from insula.networks.contract import Network

pytestmark = pytest.mark.root

SERVE = ("sh", "-c", "mkdir /w; echo page > /w/index.html; exec httpd -f -p 80 -h /w")


@pytest.fixture
def place():
    with home() as made:
        yield made


@pytest.fixture
async def engine(place: Home):
    async with opened(place) as made:
        yield made


async def test_a_published_port_is_reached_and_closes(engine: NodeEngine) -> None:
    made = await engine.create(
        config(*SERVE, name="web", network_mode="default", ports=(PortMapping(container_port=80, host_ip="127.0.0.1"),))
    )
    started = await engine.start(made.id)
    (published,) = started.published
    assert b"page" in await fetch_page("127.0.0.1", published.host_port)
    assert b"page" in await fetch_page(started.endpoints[0].address, 80)
    with pytest.raises(Conflict, match="port is already allocated"):
        other = await engine.create(
            config(
                *SERVE,
                name="b",
                network_mode="default",
                ports=(PortMapping(container_port=80, host_ip="127.0.0.1", host_port=published.host_port),),
            )
        )
        await engine.start(other.id)
    assert (await engine.get("b")).endpoints == ()
    await engine.stop(made.id, timeout_s=0)
    assert (await engine.get(made.id)).published == ()
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", published.host_port)


async def test_the_files_that_name_things(engine: NodeEngine) -> None:
    wanted = config(
        "sh", "-c", "cat /etc/hostname /etc/hosts /etc/resolv.conf; hostname",
        network_mode="default", hostname="myself", domainname="example", dns=("192.0.2.1",), dns_search=("s",),
        extra_hosts=("db:192.0.2.7", "host:host-gateway"), auto_remove=True,
    )  # fmt: skip
    _, out, _ = await run(engine, wanted)
    text = out.decode()
    network = await engine.networks.get("default")
    assert text.startswith("myself\n127.0.0.1\tlocalhost\n")
    assert "192.0.2.7\tdb\n" in text
    assert f"{network.gateway}\thost\n" in text
    assert "\tmyself.example myself\nnameserver 192.0.2.1\nsearch s\n" in text
    assert text.endswith("myself\n")


async def test_names_on_a_network_of_ones_own(engine: NodeEngine) -> None:
    await engine.networks.create(Network(id="", name="mine"))
    server = await engine.create(
        config(
            *SERVE,
            name="server",
            network_mode="mine",
            networks=(NetworkAttachment(network="mine", aliases=("alias",)),),
        )
    )
    await engine.start(server.id)
    for name in ("server", "alias", server.id[:12]):
        script = f"for i in 1 2 3 4 5 6 7 8; do wget -qO- http://{name}/ && exit 0; sleep 0.1; done; exit 1"
        state, out, err = await run(engine, config("sh", "-c", script, network_mode="mine", auto_remove=True))
        assert (state.exit_code, out) == (0, b"page\n"), err
    await engine.remove(server.id, force=True)
    await engine.networks.remove("mine")


async def test_connect_and_disconnect(engine: NodeEngine) -> None:
    await engine.networks.create(Network(id="", name="extra"))
    made = await engine.create(config(*SERVE, name="moving", network_mode="default"))
    await engine.start(made.id)
    await engine.connect("moving", NetworkAttachment(network="extra", aliases=("m",)))
    both = await engine.get("moving")
    assert [endpoint.interface for endpoint in both.endpoints] == ["eth0", "eth1"]
    assert b"page" in await fetch_page(both.endpoints[1].address, 80)
    with pytest.raises(Forbidden, match="already exists in network extra"):
        await engine.connect("moving", NetworkAttachment(network="extra"))
    await engine.disconnect("moving", "default")
    assert [endpoint.interface for endpoint in (await engine.get("moving")).endpoints] == ["eth1"]
    with pytest.raises(Conflict, match="is not connected to network"):
        await engine.disconnect("moving", "default")
    again = await engine.restart("moving", timeout_s=0)
    assert len(again.endpoints) == 1
    assert again.endpoints[0].network == (await engine.networks.get("extra")).id
    with pytest.raises(NotFound):
        await engine.connect("moving", NetworkAttachment(network="nowhere"))


async def test_host_and_shared_networks(engine: NodeEngine) -> None:
    _, out, _ = await run(
        engine, config("sh", "-c", "hostname; ls /sys/class/net", network_mode="host", auto_remove=True)
    )
    assert out.decode().split()[0] == socket.gethostname()
    first = await engine.create(config(*SERVE, name="first"))
    with pytest.raises(Conflict, match="cannot join network of a non running container"):
        await run(engine, config("true", network_mode="instance:first", name="early"))
    await engine.start(first.id)
    script = "for i in 1 2 3 4 5 6 7 8; do wget -qO- http://127.0.0.1/ && exit 0; sleep 0.1; done"
    _, out, _ = await run(engine, config("sh", "-c", script, network_mode="instance:first", auto_remove=True))
    assert out == b"page\n"


async def test_a_sandbox_is_shared(engine: NodeEngine, place: Home) -> None:
    box = await engine.make_sandbox(
        SandboxConfig(id="pod", hostname="podname", ports=(PortMapping(container_port=80),))
    )
    assert (await engine.make_sandbox(SandboxConfig(id="pod"))) == box
    assert box.address
    server = await engine.create(config(*SERVE, network_mode="sandbox:pod"))
    await engine.start(server.id)
    assert b"page" in await fetch_page(box.address, 80)
    script = "hostname; echo shared > /dev/shm/x; readlink /proc/self/ns/ipc /proc/self/ns/uts /proc/self/ns/net"
    _, one, _ = await run(engine, config("sh", "-c", script, network_mode="sandbox:pod", auto_remove=True))
    _, two, _ = await run(
        engine,
        config("sh", "-c", "cat /dev/shm/x; " + script.split("; ", 2)[2], network_mode="sandbox:pod", auto_remove=True),
    )
    assert one.decode().split()[0] == "podname"
    assert two.decode().split()[0] == "shared"
    assert one.split()[1:] == two.split()[1:]
    assert [each.config.id for each in await engine.list_sandboxes()] == ["pod"]
    await engine.remove(server.id, force=True)
    await engine.remove_sandbox("pod")
    await engine.remove_sandbox("pod")
    with pytest.raises(NotFound):
        await engine.get_sandbox("pod")
    with pytest.raises(NotFound):
        await engine.create(config("true", network_mode="sandbox:pod"))
    assert not [mount for mount in place.traces().get("mounts", []) if "sandboxes" in mount]


async def test_a_restart_of_the_node_keeps_a_sandbox(place: Home) -> None:
    async with opened(place, destroy=False) as engine:
        box = await engine.make_sandbox(SandboxConfig(id="pod", hostname="h"))
        made = await engine.create(config(*SERVE, network_mode="sandbox:pod", name="in"))
        await engine.start(made.id)
    async with opened(place) as engine:
        assert await engine.get_sandbox("pod") == box
        await until(engine, "in", "running")
        assert b"page" in await fetch_page(box.address, 80)
