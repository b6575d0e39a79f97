"""What every implementation of `Networks` owes: run against each of them. There is one, on a namespace that plays the host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from host.networks_support import World, make_world
from insula.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound, Unavailable
from insula.model.instance import PortMapping
from insula.networks.contract import Network, Networks
from insula.networks.manager import NodeNetworks

pytestmark = pytest.mark.root


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        yield made


@pytest.fixture(params=[NodeNetworks])
async def nets(world: World) -> AsyncIterator[Networks]:
    async with world.networks() as opened:
        yield opened


def wish(name: str, **more: object) -> Network:
    return Network(id="", name=name, **more)  # type: ignore[arg-type]


async def test_the_built_in_networks(nets: Networks) -> None:
    first = await nets.list()
    assert [(n.name, n.driver, n.builtin) for n in first] == [
        ("default", "bridge", True),
        ("host", "host", True),
        ("none", "none", True),
    ]
    for network in first:
        with pytest.raises(Forbidden, match="pre-defined"):
            await nets.remove(network.name)
    for name in ("host", "none"):
        with pytest.raises(Forbidden, match="cannot be connected"):
            await nets.connect(name, "a", netns=await nets.make_namespace("a"))


async def test_networks_are_found_by_name_id_and_prefix(nets: Networks) -> None:
    made = await nets.create(wish("web", labels={"k": "v"}))
    assert len(made.id) == 64 and made.created and made.labels == {"k": "v"} and len(made.bridge) <= 15
    for key in ("web", made.id, made.id[:12]):
        assert await nets.get(key) == made
    for unknown in ("nope", "", made.id + "0"):
        with pytest.raises(NotFound, match="not found"):
            await nets.get(unknown)
    assert [n.name for n in await nets.list()] == ["default", "host", "none", "web"]


async def test_names_are_taken_once_and_free_again(nets: Networks) -> None:
    await nets.create(wish("web"))
    with pytest.raises(AlreadyExists, match="network with name web already exists"):
        await nets.create(wish("web"))
    await nets.remove("web")
    await nets.create(wish("web"))


@pytest.mark.parametrize(
    ("network", "error"),
    [
        (wish("../x"), Invalid),
        (wish(""), Invalid),
        (wish("a/b"), Invalid),
        (wish("x", subnet="10.88.0.0/24"), Forbidden),
        (wish("x", subnet="192.0.2.0/28"), Invalid),
        (wish("x", driver="overlay9"), NotFound),
        (wish("x", driver="host"), Forbidden),
        (wish("x", bridge="up0"), Conflict),
    ],
)
async def test_networks_that_cannot_be(nets: Networks, network: Network, error: type[Exception]) -> None:
    with pytest.raises(error):
        await nets.create(network)
    assert len(await nets.list()) == 3


async def test_a_network_in_use_stays(nets: Networks) -> None:
    await nets.create(wish("web"))
    await nets.connect("web", "a", netns=await nets.make_namespace("a"))
    with pytest.raises(Conflict, match="has active endpoints"):
        await nets.remove("web")
    await nets.disconnect("a", "web")
    await nets.remove("web")
    with pytest.raises(NotFound):
        await nets.get("web")


async def test_addresses(nets: Networks) -> None:
    await nets.create(wish("tiny", subnet="10.77.0.0/29"))
    path = await nets.make_namespace("a")
    a = await nets.connect("tiny", "a", netns=path, address="10.77.0.5", mac="02:00:00:00:00:AA")
    assert (a.address, a.prefix, a.gateway, a.mac) == ("10.77.0.5", 29, "10.77.0.1", "02:00:00:00:00:aa")
    other = await nets.make_namespace("b")
    for address, error in (("10.77.0.5", Conflict), ("10.77.0.1", Conflict), ("10.78.0.1", Invalid), ("x", Invalid)):
        with pytest.raises(error):
            await nets.connect("tiny", "b", netns=other, address=address)
    with pytest.raises(Conflict, match="MAC"):
        await nets.connect("tiny", "b", netns=other, mac=a.mac)
    given = [(await nets.connect_tap("tiny", f"vm{n}")).address for n in range(4)]
    assert given == ["10.77.0.2", "10.77.0.3", "10.77.0.4", "10.77.0.6"]
    with pytest.raises(Unavailable, match="no available IPv4 addresses"):
        await nets.connect("tiny", "b", netns=other)
    await nets.disconnect("vm0")
    assert (await nets.connect("tiny", "b", netns=other)).address == "10.77.0.2"


async def test_a_machine_gets_the_address_that_it_had(nets: Networks) -> None:
    await nets.create(wish("lan", subnet="10.77.0.0/24"))
    mac, other = "02:49:00:00:00:01", "02:49:00:00:00:02"
    first = await nets.connect_tap("lan", "vm-1", mac=mac)
    await nets.connect_tap("lan", "vm-x", mac=other)
    await nets.disconnect("vm-1")
    again = await nets.connect_tap("lan", "vm-2", mac=mac.upper())
    assert (again.mac, again.address) == (mac, first.address)
    await nets.disconnect("vm-2")
    await nets.connect("lan", "a", netns=await nets.make_namespace("a"), address=first.address)
    moved = await nets.connect_tap("lan", "vm-3", mac=mac)
    assert moved.address not in ("", first.address)
    await nets.disconnect("a")
    await nets.disconnect("vm-3")
    assert (await nets.connect_tap("lan", "vm-4", mac=mac)).address == moved.address
    for owner in ("vm-4", "vm-x"):
        await nets.disconnect(owner)
    await nets.remove("lan")
    await nets.create(wish("lan", subnet="10.77.9.0/24"))
    assert (await nets.connect_tap("lan", "vm-5", mac=mac)).address == "10.77.9.2"


async def test_repeatable_calls(nets: Networks) -> None:
    path = await nets.make_namespace("a")
    first = await nets.connect("default", "a", netns=path, aliases=["x"])
    assert await nets.connect("default", "a", netns=path) == first
    ports = [PortMapping(container_port=80, host_port=9000)]
    opened = await nets.publish("a", first.address, ports)
    assert await nets.publish("a", first.address, ports) == opened
    for _ in range(2):
        await nets.unpublish("a")
        await nets.disconnect("a")
        await nets.drop_namespace("a")
        await nets.disconnect("never")
    assert list(await nets.endpoints()) == [] and list(await nets.published("a")) == []
    assert not Path(path).exists()


async def test_a_namespace_of_the_same_owner_is_fresh(nets: Networks) -> None:
    path = await nets.make_namespace("a")
    inode = Path(path).stat().st_ino
    with open(path):  # or the kernel would give the number again
        assert await nets.make_namespace("a") == path
        assert Path(path).stat().st_ino != inode


@pytest.mark.parametrize("owner", ["../../etc/x", "", "a/b", ".hidden"])
async def test_owners_cannot_name_other_places(nets: Networks, owner: str) -> None:
    with pytest.raises(Invalid):
        await nets.make_namespace(owner)
    with pytest.raises(Invalid):
        await nets.drop_namespace(owner)


async def test_endpoints_are_listed_by_owner_and_network(nets: Networks) -> None:
    await nets.create(wish("web"))
    path = await nets.make_namespace("a")
    one = await nets.connect("default", "a", netns=path)
    two = await nets.connect("web", "a", netns=path)
    tap = await nets.connect_tap("web", "vm")
    assert (one.interface, two.interface, tap.interface) == ("eth0", "eth1", "")
    assert list(await nets.endpoints(owner="a")) == [one, two]
    assert list(await nets.endpoints(network="web")) == [two, tap]
    assert list(await nets.endpoints(owner="vm", network="default")) == []


async def test_leaving_closes_the_ports(nets: Networks) -> None:
    one = await nets.connect("default", "a", netns=await nets.make_namespace("a"))
    await nets.publish("app-in-a", one.address, [PortMapping(container_port=80, host_port=9001)])
    await nets.disconnect("a")
    assert list(await nets.published("app-in-a")) == []
