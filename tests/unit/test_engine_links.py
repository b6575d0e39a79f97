"""What links tell in the environment, and how they are spelled."""

from __future__ import annotations

import pytest

from insula.api.docker.containers_network import parse_link
from insula.engine.links import ranges, variables
from insula.errors import Invalid


def test_the_environment_of_a_link() -> None:
    env = variables(
        "my-db", "/web/my-db", "10.0.0.2", [(5433, "tcp"), (53, "udp"), (5432, "tcp")], ["A=1", "PATH=/x", "B"]
    )
    assert env == [
        "MY_DB_PORT=tcp://10.0.0.2:5432",
        "MY_DB_PORT_5432_TCP_START=tcp://10.0.0.2:5432",
        "MY_DB_PORT_5432_TCP_PORT_START=5432",
        "MY_DB_PORT_5432_TCP_END=tcp://10.0.0.2:5433",
        "MY_DB_PORT_5432_TCP_PORT_END=5433",
        "MY_DB_PORT_5432_TCP=tcp://10.0.0.2:5432",
        "MY_DB_PORT_5432_TCP_ADDR=10.0.0.2",
        "MY_DB_PORT_5432_TCP_PORT=5432",
        "MY_DB_PORT_5432_TCP_PROTO=tcp",
        "MY_DB_PORT_5433_TCP=tcp://10.0.0.2:5433",
        "MY_DB_PORT_5433_TCP_ADDR=10.0.0.2",
        "MY_DB_PORT_5433_TCP_PORT=5433",
        "MY_DB_PORT_5433_TCP_PROTO=tcp",
        "MY_DB_PORT_53_UDP=udp://10.0.0.2:53",
        "MY_DB_PORT_53_UDP_ADDR=10.0.0.2",
        "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp",
        "MY_DB_NAME=/web/my-db",
        "MY_DB_ENV_A=1",
    ]
    assert variables("x", "/a/x", "1.2.3.4", [], []) == ["X_NAME=/a/x"]


def test_ranges_are_of_one_protocol() -> None:
    ports = [(1, "tcp"), (2, "tcp"), (3, "tcp"), (5, "tcp"), (6, "udp"), (7, "udp")]
    assert ranges(ports) == [((1, "tcp"), (3, "tcp")), ((6, "udp"), (7, "udp"))]
    assert ranges([]) == [] and ranges([(1, "tcp")]) == []


def test_spellings() -> None:
    assert [parse_link(text) for text in ("db", "db:alias", "/db:/web/alias")] == [
        ("db", "db"),
        ("db", "alias"),
        ("db", "alias"),
    ]
    for text, sentence in (("a:b:c", "bad format for links: a:b:c"), (":x", "empty string specified for links")):
        with pytest.raises(Invalid, match=sentence):
            parse_link(text)
