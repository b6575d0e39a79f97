"""Networks and volumes by the docker CLI and raw requests: what is shown, what is refused, in dockerd's words."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from door.docker_support import DOCKER, IMAGE, Daemon, running

pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


def shown(daemon: Daemon, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.text(*arguments))[0]
    return found


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


LOOK = "nslookup www 127.0.0.11; cat /sys/class/net/eth0/mtu"


def test_a_network_with_everything(daemon: Daemon) -> None:
    name, web = daemon.name(), daemon.name()
    port = free_port()
    daemon.docker(
        "network", "create", "--ipv6", "--subnet", "10.201.7.0/24", "--ip-range", "10.201.7.128/25", "--gateway", "10.201.7.254",
        "--aux-address", "router=10.201.7.129", "--subnet", "fd27::/64", "--label", "a=b",
        "--opt", "com.docker.network.driver.mtu=1400", name,
    )  # fmt: skip
    daemon.docker(
        "run", "-d", "--name", web, "--network", name, "--network-alias", "www", "--ip6", "fd27::99", "-p", f"{port}:80",
        "-p", "127.0.0.1:0:81", IMAGE, "sleep", "60",
    )  # fmt: skip
    network = shown(daemon, "network", "inspect", name)
    assert network["IPAM"]["Config"] == [
        {
            "Subnet": "10.201.7.0/24", "IPRange": "10.201.7.128/25", "Gateway": "10.201.7.254",
            "AuxiliaryAddresses": {"router": "10.201.7.129"},
        },
        {"Subnet": "fd27::/64", "Gateway": "fd27::1"},
    ]  # fmt: skip
    (member,) = network["Containers"].values()
    assert (member["Name"], member["IPv4Address"], member["IPv6Address"]) == (web, "10.201.7.128/24", "fd27::99/64")
    assert (network["EnableIPv6"], network["Labels"]) == (True, {"a": "b"})
    settings = shown(daemon, "inspect", web)["NetworkSettings"]
    place = settings["Networks"][name]
    assert (place["GlobalIPv6Address"], place["IPv6Gateway"], place["IPAMConfig"]) == (
        "fd27::99", "fd27::1", {"IPv6Address": "fd27::99"},
    )  # fmt: skip
    assert settings["Ports"]["80/tcp"] == [
        {"HostIp": "0.0.0.0", "HostPort": str(port)},
        {"HostIp": "::", "HostPort": str(port)},
    ]
    assert [each["HostIp"] for each in settings["Ports"]["81/tcp"]] == ["127.0.0.1"]
    told = daemon.text(
        "run", "--rm", "--network", name, IMAGE, "sh", "-c", "nslookup www 127.0.0.11; cat /sys/class/net/eth0/mtu"
    )
    assert "10.201.7.128" in told and "fd27::99" in told and told.split()[-1] == "1400"
    refused = daemon.docker("network", "rm", name, check=1)
    assert b"error while removing network: network " + name.encode() in refused.stderr
    assert b"has active endpoints" in refused.stderr
    daemon.docker("rm", "-f", web)
    daemon.docker("network", "rm", name)


def test_settings_that_are_lent(daemon: Daemon) -> None:
    lender, taker = daemon.name(), daemon.name()
    daemon.docker("network", "create", "--config-only", "--subnet", "10.201.8.0/24", lender)
    daemon.docker("network", "create", "--config-from", lender, taker)
    assert shown(daemon, "network", "inspect", taker)["ConfigFrom"] == {"Network": lender}
    assert shown(daemon, "network", "inspect", lender)["Driver"] == "null"
    refused = daemon.docker("network", "rm", lender, check=1)
    assert f'configuration network "{lender}" is in use'.encode() in refused.stderr
    assert b"configuration-only" in daemon.docker("run", "--rm", "--network", lender, IMAGE, "true", check=125).stderr
    daemon.docker("network", "rm", taker, lender)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--driver", "nope"), 'plugin "nope" not found'),
        (("--driver", "host"), 'only one instance of "host" network is allowed'),
        (("--subnet", "10.201.9.0/24", "--subnet", "10.201.10.0/24"), "bridge driver doesn't support multiple subnets"),
        (("--subnet", "10.201.9.1/24"), "invalid subnet 10.201.9.1/24: it should be 10.201.9.0/24"),
        (("--config-from", "nowhere"), 'configuration network "nowhere" does not exist'),
        (
            ("--opt", "com.docker.network.bridge.enable_icc=maybe"),
            "failed to parse com.docker.network.bridge.enable_icc",
        ),
        (("--driver", "macvlan", "--opt", "parent=nowhere0"), "parent interface was not found on the host: nowhere0"),
    ],
)
def test_networks_that_are_refused(daemon: Daemon, arguments: tuple[str, ...], sentence: str) -> None:
    done = daemon.docker("network", "create", *arguments, daemon.name(), check=1)
    assert sentence in done.stderr.decode()


def test_the_first_free_port_of_a_range(daemon: Daemon) -> None:
    first = free_port() // 10 * 10
    spec = f"127.0.0.1:{first}-{first + 9}:80"
    names = [daemon.name(), daemon.name()]
    ports = []
    for name in names:
        daemon.docker("run", "-d", "--name", name, "-p", spec, IMAGE, "sleep", "60")
        ports.append(int(daemon.text("port", name, "80").rpartition(":")[2]))
    assert first <= ports[0] < ports[1] <= first + 9
    daemon.docker("rm", "-f", *names)


def test_networks_come_and_go_while_it_runs(daemon: Daemon) -> None:
    web, extra = daemon.name(), daemon.name()
    daemon.docker("network", "create", extra)
    daemon.docker("run", "-d", "--name", web, IMAGE, "sleep", "60")
    daemon.docker(
        "network", "connect", "--alias", "w", "--driver-opt", "com.docker.network.endpoint.ifname=lan0", extra, web
    )
    assert "lan0" in daemon.text("exec", web, "ls", "/sys/class/net")
    again = daemon.docker("network", "connect", extra, web, check=1)
    assert f"endpoint with name {web} already exists in network {extra}".encode() in again.stderr
    daemon.docker("network", "disconnect", "bridge", web)
    daemon.docker("network", "disconnect", extra, web)
    assert shown(daemon, "inspect", web)["NetworkSettings"]["Networks"] == {}
    daemon.docker("network", "connect", extra, web)
    assert list(shown(daemon, "inspect", web)["NetworkSettings"]["Networks"]) == [extra]
    daemon.docker("rm", "-f", web)
    daemon.docker("network", "prune", "-f")


def test_starts_and_ends_are_events_of_the_network(daemon: Daemon) -> None:
    name = daemon.name()
    since = str(int(time.time()) - 1)
    daemon.docker("run", "--rm", "--name", name, IMAGE, "true")
    told = daemon.text("events", "--since", since, "--until", str(int(time.time()) + 1), "--filter", "type=network", "--format",
                       "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.type}}")  # fmt: skip
    assert told.splitlines()[-2:] == ["connect bridge bridge", "disconnect bridge bridge"]


# --- volumes ----------------------------------------------------------------------------------------------------------


def test_a_volume_with_options(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    name = daemon.name()
    daemon.docker(
        "volume", "create", "-d", "local", "-o", "type=none", "-o", "o=bind", "-o", f"device={tmp_path}", name
    )
    assert daemon.text("run", "--rm", "-v", f"{name}:/v:ro", IMAGE, "cat", "/v/file") == "mine"
    assert shown(daemon, "volume", "inspect", name)["Options"] == {"type": "none", "o": "bind", "device": str(tmp_path)}
    daemon.docker("volume", "rm", name)
    assert (tmp_path / "file").exists()
    refused = daemon.docker("volume", "create", "-o", "foo=bar", name, check=1)
    assert f'create {name}: invalid option: "foo"'.encode() in refused.stderr
    assert b'plugin "x" not found' in daemon.docker("volume", "create", "-d", "x", name, check=1).stderr


def test_how_mounts_are_shown(daemon: Daemon, tmp_path: Path) -> None:
    name, volume = daemon.name(), daemon.name()
    daemon.docker(
        "create", "--name", name, "-v", f"{volume}:/a", "-v", f"{tmp_path}:/b:ro",
        "--mount", f"type=volume,src={volume},dst=/c,ro",
        "--mount", "type=tmpfs,dst=/d,tmpfs-size=1m", "-v", "/e", IMAGE, "true",
    )  # fmt: skip
    mounts = {each["Destination"]: each for each in shown(daemon, "inspect", name)["Mounts"]}
    assert [
        (path, each["Type"], each["Mode"], each["RW"], each["Propagation"]) for path, each in sorted(mounts.items())
    ] == [
        ("/a", "volume", "z", True, ""),
        ("/b", "bind", "ro", False, "rprivate"),
        ("/c", "volume", "z", False, ""),
        ("/d", "tmpfs", "", True, ""),
        ("/e", "volume", "", True, ""),
    ]
    used = daemon.docker("volume", "rm", volume, check=1)
    assert f"remove {volume}: volume is in use - [".encode() in used.stderr
    daemon.docker("rm", "-v", name)
    daemon.docker("volume", "rm", volume)
