"""Links: the older way in which containers know each other, on the default network and on user-made ones."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from door.docker_support import DOCKER, IMAGE, Daemon, running, until

# ruff: noqa: SIM117 - the second needs the first

pytestmark = [pytest.mark.root, pytest.mark.skipif(DOCKER is None, reason="the docker CLI is not installed")]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


def address(daemon: Daemon, name: str, network: str = "bridge") -> str:
    return daemon.text(
        "inspect", "--format", f"{{{{(index .NetworkSettings.Networks {json.dumps(network)}).IPAddress}}}}", name
    )


def test_a_link_on_the_default_network(daemon: Daemon) -> None:
    with daemon.container("--expose", "80", "-e", "SECRET=1", "--hostname", "db-host", IMAGE, "sleep", "300") as db:
        with daemon.container("--link", f"{db}:store", IMAGE, "sleep", "300") as web:
            first = address(daemon, db)
            hosts = daemon.text("exec", web, "cat", "/etc/hosts")
            assert f"{first}\tstore db-host {db}" in hosts
            env = daemon.text("exec", web, "env").splitlines()
            assert {f"STORE_PORT=tcp://{first}:80", f"STORE_NAME=/{web}/store", "STORE_ENV_SECRET=1"} <= set(env)
            assert daemon.docker("exec", web, "ping", "-c1", "-W2", "store")
            links = json.loads(daemon.text("inspect", "--format", "{{json .HostConfig.Links}}", web))
            assert links == [f"/{db}:/{web}/store"]
            row = daemon.text(
                "ps",
                "--no-trunc",
                "--filter",
                f"id={daemon.text('inspect', '--format', '{{.Id}}', db)}",
                "--format",
                "{{.Names}}",
            )
            assert row == f"{db},{web}/store"
            daemon.docker("stop", "-t", "0", db)
            refused = daemon.docker("restart", "-t", "0", web, check=1)
            assert f"Cannot link to a non running container: /{db} AS /{web}/store".encode() in refused.stderr
            with daemon.container(IMAGE, "sleep", "300"):  # takes the address that is free
                daemon.docker("start", db)
                daemon.docker("start", web)
                second = address(daemon, db)
                daemon.docker("restart", "-t", "0", db)
                third = address(daemon, db)
                until(
                    lambda: f"{third}\tstore" in daemon.text("exec", web, "cat", "/etc/hosts"),
                    what=f"{second} to {third}",
                )
            daemon.docker("rm", "--link", f"{web}/store")
            assert "store" not in daemon.text("exec", web, "cat", "/etc/hosts")
            assert daemon.text("inspect", "--format", "{{json .HostConfig.Links}}", web) == "null"


def test_a_link_on_a_network_of_ones_own(daemon: Daemon) -> None:
    network = daemon.name()
    daemon.docker("network", "create", network)
    with daemon.container("--network", network, IMAGE, "sleep", "300") as db:
        with daemon.container("--network", network, "--link", f"{db}:store", IMAGE, "sleep", "300") as web:
            assert f"{address(daemon, db, network)}\tstore" in daemon.text("exec", web, "cat", "/etc/hosts")
            assert "STORE_" not in daemon.text("exec", web, "env")
            shown = daemon.text(
                "inspect",
                "--format",
                f"{{{{json (index .NetworkSettings.Networks {json.dumps(network)}).Links}}}}",
                web,
            )
            assert json.loads(shown) == [f"{db}:store"]
    daemon.docker("network", "rm", network)


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ({"Links": ["nosuch:x"]}, "could not get container for nosuch: No such container: nosuch"),
        ({"Links": ["a:b:c"]}, "bad format for links: a:b:c"),
        (
            {"Links": ["a:b"], "NetworkMode": "host"},
            "conflicting options: host type networking can't be used with links.",
        ),
    ],
)
def test_refusals(daemon: Daemon, host: dict[str, object], sentence: str) -> None:
    answer = daemon.api("POST", "/containers/create", {"Image": IMAGE, "HostConfig": host})
    assert answer.status == 400 and answer.message.startswith(sentence)
