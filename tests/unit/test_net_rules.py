"""Small decisions of the networks: ports, bridges, recovery, netlink messages, the shared ledger writes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from insula.errors import Conflict, Forbidden, Invalid, Unavailable, Unsupported
from insula.host import netlink
from insula.host.netlink import Route
from insula.model.instance import PortMapping
from insula.networks import ledger as ledgers
from insula.networks import options
from insula.networks.contract import Endpoint, Network, Published
from insula.networks.ledger import Ledger, LedgerFile
from insula.networks.manager import NodeNetworks
from insula.networks.ports import PortTable, check_mapping, hold, places_of, taken_by
from insula.networks.recovery import orphans
from insula.networks.type import View, all_types

TYPES = all_types()


def view(*networks: Network, routes: tuple[Route, ...] = ()) -> View:
    return View(networks=networks, routes=routes, pools=(("10.9.0.0/16", 24),), prefix="ins")


def test_every_type_is_a_file_that_exports_one_constant() -> None:
    assert sorted(TYPES) == ["bridge", "host", "ipvlan", "macvlan", "none"]
    assert all(kind.driver == name and kind.summary for name, kind in TYPES.items())


def test_a_bridge_chooses_what_was_left_open() -> None:
    made = TYPES["bridge"].complete(Network(id="", name="n"), view(routes=(Route(destination="10.9.0.0/24"),)))
    assert (made.subnet, made.gateway) == ("10.9.1.0/24", "10.9.1.1")
    assert made.bridge.startswith("insb") and len(made.bridge) == 12
    named = TYPES["bridge"].complete(Network(id="", name="n", options={options.NAME: "mybr"}), view())
    assert named.bridge == "mybr" and options.mtu(named, 1400) == 1400
    assert options.mtu(msgspec.structs.replace(named, options={options.MTU: "9000"}), 1400) == 9000


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        ({"subnet": "10.9.7.0/25"}, Forbidden),  # another network's
        ({"subnet": "192.0.2.0/25"}, Invalid),  # the host's own link
        ({"subnet": "10.20.0.0/24", "gateway": "10.21.0.1"}, Invalid),
        ({"subnet": "10.20.0.0/24", "ip_range": "10.21.0.0/25"}, Invalid),
        ({"gateway": "10.20.0.1"}, Invalid),
        ({"subnet": "10.20.0.0/24", "bridge": "a name that is too long"}, Invalid),
        ({"subnet": "10.20.0.0/24", "bridge": "../x"}, Invalid),
        ({"options": {options.MTU: "huge"}}, Invalid),
        ({"options": {options.ICC: "maybe"}}, Invalid),
        ({"options": {"com.docker.network.bridge.gateway_mode_ipv4": "other"}}, Invalid),
        ({"options": {"com.docker.network.host_ipv4": "192.0.2.1 } ; flush ruleset"}}, Invalid),
        ({"options": {"com.docker.network.host_ipv6": "fd00::1%x } ; flush ruleset"}}, Invalid),
        ({"options": {"com.docker.network.bridge.host_binding_ipv4": "fd00::1%x"}}, Invalid),
        ({"options": {"com.docker.network.bridge.gateway_mode_ipv4": "isolated"}}, Invalid),
        ({"ipv6": True}, Unavailable),
    ],
)
def test_bridges_that_cannot_be(wish: dict[str, object], error: type[Exception]) -> None:
    there = Network(id="1", name="there", subnet="10.9.7.0/24")
    routes = (Route(destination="192.0.2.0/24"), Route(destination="10.0.0.0/8", gateway="192.0.2.9"))
    with pytest.raises(error):
        TYPES["bridge"].complete(Network(id="", name="n", **wish), view(there, routes=routes))  # type: ignore[arg-type]


def test_a_wished_subnet_may_lie_behind_a_gateway() -> None:
    routes = (Route(destination="10.0.0.0/8", gateway="192.0.2.9"),)
    wish = Network(id="", name="n", subnet="10.20.0.0/24")
    assert TYPES["bridge"].complete(wish, view(routes=routes)).gateway == "10.20.0.1"


@pytest.mark.parametrize("driver", ["host", "none"])
def test_there_is_one_host_and_one_none(driver: str) -> None:
    first = TYPES[driver].complete(Network(id="1", name="x", driver=driver), view())
    with pytest.raises(Forbidden, match="only one instance"):
        TYPES[driver].complete(Network(id="", name="y", driver=driver), view(first))


def published(host_ip: str = "0.0.0.0", port: int = 80, owner: str = "a", address: str = "10.0.0.2") -> Published:
    return Published(owner=owner, host_ip=host_ip, host_port=port, container_port=80, protocol="tcp", address=address)


@pytest.mark.parametrize(
    ("there", "wanted", "taken"),
    [
        ("0.0.0.0", "0.0.0.0", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "192.0.2.1", False),
    ],
)
def test_who_covers_a_port(there: str, wanted: str, taken: bool) -> None:
    assert bool(taken_by([published(there)], wanted, 80, "tcp")) is taken
    assert taken_by([published(there)], wanted, 80, "udp") is None
    assert taken_by([published(there)], wanted, 81, "tcp") is None


ENDPOINT = Endpoint(
    id="e", network="n", owner="a", interface="eth0", host_interface="v", mac="", address="10.0.0.2", prefix=24,
    gateway="10.0.0.1",
)  # fmt: skip
BOTH = msgspec.structs.replace(ENDPOINT, address6="fd00::2", prefix6=64)


def test_host_addresses_of_mappings() -> None:
    assert check_mapping(PortMapping(container_port=80)) == ""
    assert check_mapping(PortMapping(container_port=80, host_ip="127.0.0.1")) == "127.0.0.1"
    assert check_mapping(PortMapping(container_port=80, host_ip="0::1")) == "::1"
    zone = {"host_ip": "fd00::1%x } ; flush ruleset"}
    for wrong in (
        zone,
        {"host_ip": "x"},
        {"host_port": 70000},
        {"last_host_port": 70000},
        {"protocol": "icmp"},
    ):
        with pytest.raises(Invalid):
            check_mapping(PortMapping(container_port=80, **wrong))  # type: ignore[arg-type]


def test_where_ports_open() -> None:
    assert places_of("", ENDPOINT) == [("0.0.0.0", "10.0.0.2")]
    assert places_of("", BOTH) == [("0.0.0.0", "10.0.0.2"), ("::", "fd00::2")]
    assert places_of("192.0.2.1", BOTH) == [("192.0.2.1", "10.0.0.2")]
    assert places_of("fd01::1", BOTH) == [("fd01::1", "fd00::2")]
    with pytest.raises(Unsupported, match="no IPv6 address"):
        places_of("fd01::1", ENDPOINT)
    with pytest.raises(Unsupported, match="does not carry"):
        places_of("::1", BOTH)


def test_a_port_of_a_range_is_the_first_free_one() -> None:
    table, first = PortTable(), free_ports(3)
    try:
        asked = PortMapping(container_port=80, host_port=first, last_host_port=first + 2)
        given = [each.host_port for _ in range(3) for each in table.take("a", ENDPOINT, [asked], "who")[0]]
        assert given == [first, first + 1, first + 2]
        with pytest.raises(Conflict, match="port is already allocated"):
            table.take("a", ENDPOINT, [asked], "who")
    finally:
        table.close()


def test_a_port_on_both_versions_has_one_number() -> None:
    table = PortTable()
    try:
        (four, six), new = table.take("a", BOTH, [PortMapping(container_port=80)], "who")
        assert four.host_port == six.host_port and new == [four, six]
        assert table.take("a", BOTH, [PortMapping(container_port=80, host_port=four.host_port)], "who")[1] == []
        with pytest.raises(Conflict, match=r"Bind for 0.0.0.0:\d+ failed"):
            table.take("b", BOTH, [PortMapping(container_port=80, host_port=four.host_port)], "who")
    finally:
        table.close()


def free_ports(count: int) -> int:
    """The first of some neighbouring ports that nobody has now."""
    for first in range(20000 + os.getpid() % 8000, 32000, count):
        held = []
        try:
            held += [hold("0.0.0.0", first + n, "tcp") for n in range(count)]
            return first
        except OSError:
            continue
        finally:
            for each in held:
                if each:
                    each.close()
    raise AssertionError("no port is free")


def test_orphans() -> None:
    def endpoint(owner: str, address: str, netns: str = "") -> Endpoint:
        names = {"interface": "eth0", "host_interface": owner, "mac": "", "gateway": "", "network": "n"}
        return Endpoint(id=owner, owner=owner, address=address, prefix=24, netns=netns, **names)

    living, dead, gone = endpoint("a", "1", "/a"), endpoint("b", "2", "/b"), endpoint("c", "3", "/c")
    pod = published(owner="app", address="1")  # an instance in the sandbox `a`
    ports = [
        pod,
        published(owner="b", address="2"),
        published(owner="c", address="3"),
        published(owner="x", address="1"),
    ]
    lost = orphans([living, dead, gone], ports, {"a", "app", "b"}, {"/b"})
    assert lost.endpoints == [dead, gone] and lost.published == ports[1:]


def test_netlink_messages_of_known_bytes() -> None:
    request = netlink.set_link("v0", up=True, master=7)
    assert request.body.hex() == (
        "00000000"
        "00000000"
        "01000000"
        "01000000"  # ifinfomsg: up, change up
        "07000300"
        "76300000"  # IFLA_IFNAME "v0"
        "08000a00"
        "07000000"  # IFLA_MASTER 7
    )
    assert request.command == "ip link set v0 master #7 up"
    address = netlink.add_address(3, "10.88.0.2", 16)
    assert address.body.hex() == ("0210000003000000080002000a580002080001000a580002080004000a58ffff")


def test_netlink_messages_of_interfaces_on_a_parent() -> None:
    child = netlink.add_child("ipvlan", "eth0", parent=2, data=netlink.ipvlan_data("l3", "private"), netns_fd=9)
    assert child.command == "ip link add link #2 name eth0 type ipvlan"
    told = netlink.attributes(child.body[16:])
    assert (told[3], told[5], told[28]) == (b"eth0\0", b"\2\0\0\0", b"\x09\0\0\0")
    info = netlink.attributes(told[18])
    assert info[1] == b"ipvlan\0" and netlink.attributes(info[2]) == {1: b"\1\0", 2: b"\1\0"}
    assert netlink.attributes(netlink.macvlan_data("passthru")) == {1: b"\x08\0\0\0"}
    assert netlink.attributes(netlink.vlan_data(10)) == {1: b"\x0a\0"}


def test_netlink_messages_of_ipv6() -> None:
    assert netlink.add_address(3, "fd00::2", 64).body.hex() == (
        "0a40020003000000" "14000100" "fd000000000000000000000000000002"
    )  # fmt: skip
    assert netlink.add_default_route(3, "fd00::1").command == "ip -6 route replace default via fd00::1 dev #3 metric 1"
    assert netlink.add_default_route(3, "").command == "ip route replace default dev #3 metric 0"


def test_netlink_answers_of_any_bytes() -> None:
    assert netlink.attributes(b"\x08\x00\x04\x00\x01\x02\x03\x04") == {4: b"\1\2\3\4"}
    assert netlink.attributes(b"\0" * 7) == {} and netlink.attributes(b"\xff\xff\1\0ab") == {1: b"ab"}


@pytest.mark.parametrize("wrong", [{"prefix": "Ins"}, {"prefix": "toolong"}, {"table": "a b"}, {"table": "x;y"}])
async def test_names_that_cannot_be(tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        await NodeNetworks.open(tmp_path, tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []


async def test_ledger_writes_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    replace = ledgers._replace
    monkeypatch.setattr(ledgers, "_replace", lambda *args: (writes.append(args), replace(*args)))
    state = Ledger()
    file = LedgerFile(tmp_path / "l.json", lambda: state)
    assert await file.load() == Ledger()
    state.published.append(published())
    await asyncio.gather(*(file.save() for _ in range(20)))
    assert len(writes) <= 2 and await file.load() == state
    assert [path.name for path in tmp_path.iterdir()] == ["l.json"]


async def test_a_disk_that_refuses_is_a_sentence(tmp_path: Path) -> None:
    file = LedgerFile(tmp_path / "missing" / "l.json", Ledger)
    with pytest.raises(Unavailable, match="cannot be written"):
        await file.save()
