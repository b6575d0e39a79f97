"""The Docker door over TCP: addresses, and TLS as a machine between bytes and bytes."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from insula.api.docker.remote import Address, Tls, own_context, parse_address
from insula.cli import remote
from insula.cli.issuer import Issuer
from insula.cli.paths import paths_of
from insula.cli.settings import Settings
from insula.errors import Invalid


@pytest.mark.parametrize(
    ("text", "tls", "host", "port"),
    [
        ("tcp://127.0.0.1:2376", True, "127.0.0.1", 2376),
        ("tcp://0.0.0.0", True, "0.0.0.0", 2376),
        ("tcp://0.0.0.0", False, "0.0.0.0", 2375),
        ("tcp://:1234", True, "0.0.0.0", 1234),
        ("tcp://[::1]:0", True, "::1", 0),
        ("tcp://[::1]", True, "::1", 2376),
        ("tcp://node.example:99/", True, "node.example", 99),
    ],
)
def test_addresses(text: str, tls: bool, host: str, port: int) -> None:
    assert parse_address(text, tls=tls) == Address(host=host, port=port)


@pytest.mark.parametrize("text", ["", "tcp://", "127.0.0.1:2376", "http://x:1", "tcp://x:y", "tcp://x:65536", "fd://"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(Invalid) as fault:
        parse_address(text)
    assert fault.value.field == "docker_hosts"


def test_an_address_is_written_as_clients_read_it() -> None:
    assert [str(parse_address(text)) for text in ("tcp://[::1]:5", "tcp://a:6")] == ["tcp://[::1]:5", "tcp://a:6"]


def test_plain_tcp_stays_on_this_machine_unless_asked_for_by_name() -> None:
    hosts = ("tcp://127.0.0.1:1", "tcp://[::1]:2", "tcp://localhost:3")
    assert len(remote.addresses(Settings(docker_hosts=hosts, docker_tls=False))) == 3
    for host in ("tcp://0.0.0.0:1", "tcp://10.0.0.1:1", "tcp://node.example:1", "tcp://:1"):
        assert remote.addresses(Settings(docker_hosts=(host,)))
        with pytest.raises(Invalid, match="without encryption"):
            remote.addresses(Settings(docker_hosts=(host,), docker_tls=False))
        assert remote.addresses(Settings(docker_hosts=(host,), docker_tls=False, docker_plain_tcp=True))


def test_what_a_client_dials() -> None:
    assert remote.reachable(["tcp://0.0.0.0:5"], "") == "tcp://127.0.0.1:5"
    assert remote.reachable(["tcp://0.0.0.0:5"], "node.example") == "tcp://node.example:5"
    assert remote.reachable(["tcp://10.1.1.1:5"], "") == "tcp://10.1.1.1:5"
    with pytest.raises(Invalid, match="no TCP address"):
        remote.reachable([], "")
    assert remote.context_command("n", "tcp://a:1", Path("/c")) == [
        "docker", "context", "create", "n", "--docker", "host=tcp://a:1,ca=/c/ca.pem,cert=/c/cert.pem,key=/c/key.pem"
    ]  # fmt: skip


# --- TLS --------------------------------------------------------------------------------------------------------


class Pair:
    """A server and a client, and what goes between them."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
        self.server, self.client = Tls(server), Tls(client, server=False, name="localhost")
        self.heard, self.answered = b"", b""

    def talk(self) -> None:
        self.answered += self.client.feed(b"")
        for _ in range(6):
            self.heard += self.server.feed(self.client.outgoing())
            self.answered += self.client.feed(self.server.outgoing())


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "ca")


def server_of(issuer: Issuer) -> ssl.SSLContext:
    return issuer.server_context("door", ("localhost",))


def client_of(issuer: Issuer, folder: Path, *, of: Issuer | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=issuer.ca_pem.decode())
    if of is not None:
        mine = of.issue("me")
        (folder / "me.pem").write_bytes(mine.certificate + mine.key)
        context.load_cert_chain(folder / "me.pem")
    return context


def test_both_directions_end_by_themselves(issuer: Issuer, tmp_path: Path) -> None:
    pair = Pair(server_of(issuer), client_of(issuer, tmp_path, of=issuer))
    pair.talk()
    assert pair.server.ready and pair.client.ready
    big = bytes(range(256)) * 1000
    pair.client.send(big)
    pair.talk()
    assert pair.heard == big
    pair.client.end()
    pair.talk()
    assert pair.server.ended and not pair.client.ended
    pair.server.send(b"still here")
    pair.talk()
    assert pair.answered == b"still here"
    pair.server.end()
    pair.talk()
    assert pair.client.ended


@pytest.mark.parametrize("who", ["nobody", "a stranger"])
def test_only_certificates_of_the_authority_open_the_door(issuer: Issuer, tmp_path: Path, who: str) -> None:
    stranger = Issuer(tmp_path / "other") if who == "a stranger" else None
    pair = Pair(server_of(issuer), client_of(issuer, tmp_path, of=stranger))
    with pytest.raises(ssl.SSLError):
        pair.talk()
    assert not pair.server.ready and pair.server.outgoing()


def test_no_tls_at_all(issuer: Issuer) -> None:
    with pytest.raises(ssl.SSLError) as fault:
        Tls(server_of(issuer)).feed(b"GET /_ping HTTP/1.1\r\n\r\n")
    assert fault.value.reason == "HTTP_REQUEST"


def test_files_of_the_administrators_own(issuer: Issuer, tmp_path: Path) -> None:
    folder = issuer.folder
    server_of(issuer)
    context = own_context(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    assert context.verify_mode == ssl.CERT_REQUIRED
    with pytest.raises(Invalid, match="cannot be used"):
        own_context(folder / "ca.crt", folder / "missing", folder / "server.key")


def test_a_clients_files(tmp_path: Path) -> None:
    paths = paths_of(str(tmp_path / "root"))
    remote.issue(paths, "alice", tmp_path / "alice")
    assert sorted(each.name for each in (tmp_path / "alice").iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
    assert (tmp_path / "alice/key.pem").stat().st_mode & 0o777 == 0o600
    assert remote.authority(paths).ca_pem == (tmp_path / "alice/ca.pem").read_bytes()
