"""How registries are reached: decisions about TLS, mirrors, certificates and proxies."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from yarl import URL

from insula.errors import Invalid, Unavailable
from insula.images import registries
from insula.images.registries import Endpoint, Registries


@pytest.mark.parametrize(
    ("domain", "insecure"),
    [
        ("localhost:5000", True),
        ("127.3.4.5:5000", True),
        ("[::1]:5000", True),
        ("10.1.2.3:5000", True),
        ("10.1.2.3", True),
        ("10.2.0.1:5000", False),
        ("hub.example:5000", True),
        ("hub.example", False),
        ("other.example:77", True),
        ("other.example", True),
        ("[fd00::7]:443", True),
        ("[fd01::7]:443", False),
        ("docker.io", False),
    ],
)
def test_which_registries_may_be_insecure(domain: str, insecure: bool) -> None:
    chosen = Registries(insecure=("10.1.0.0/16", "hub.example:5000", "other.example", "fd00::/64"))
    assert registries.is_insecure(chosen, domain) is insecure


def test_mirrors_stand_before_the_registry_but_take_no_pushes() -> None:
    chosen = Registries(
        mirrors=("https://near.example", "quay.example=http://127.0.0.1:5001/quay/", "https://far.example/")
    )
    assert [each.url for each in registries.endpoints(chosen, "docker.io")] == [
        "https://near.example/",
        "https://far.example/",
        "https://registry-1.docker.io/",
    ]
    mirror, own = registries.endpoints(chosen, "quay.example")
    assert mirror == Endpoint(url="http://127.0.0.1:5001/quay/", host="127.0.0.1:5001", mirror=True, insecure=True)
    assert own == Endpoint(url="https://quay.example/", host="quay.example")
    assert [each.url for each in registries.endpoints(chosen, "docker.io", pushing=True)] == [
        "https://registry-1.docker.io/"
    ]


@pytest.mark.parametrize(
    ("chosen", "field"),
    [
        (Registries(mirrors=("near.example",)), "registry_mirrors"),
        (Registries(mirrors=("ftp://near.example",)), "registry_mirrors"),
        (Registries(mirrors=("https://me:secret@near.example",)), "registry_mirrors"),
        (Registries(insecure=("http://x",)), "insecure_registries"),
        (Registries(insecure=("10.0.0.0/99",)), "insecure_registries"),
        (Registries(http_proxy="socks5://x:1"), "http_proxy"),
        (Registries(https_proxy="x:1"), "https_proxy"),
        (Registries(downloads=0), "downloads"),
        (Registries(attempts=10_000), "attempts"),
    ],
)
def test_wrong_settings_are_named(chosen: Registries, field: str) -> None:
    with pytest.raises(Invalid) as fault:
        registries.check(chosen)
    assert fault.value.field == field


def test_the_environment_fills_in_proxies() -> None:
    environment = {"HTTPS_PROXY": "http://big:1", "http_proxy": "http://small:2", "NO_PROXY": "a"}
    found = registries.with_environment(Registries(no_proxy="mine"), environment)
    assert (found.https_proxy, found.http_proxy, found.no_proxy) == ("http://big:1", "http://small:2", "mine")


@pytest.mark.parametrize(
    ("url", "through"),
    [
        ("https://hub.example/", "http://proxy:3128"),
        ("http://hub.example/", None),  # only https_proxy is set
        ("https://localhost:5000/", None),
        ("https://127.8.8.8/", None),
        ("https://[::1]/", None),
        ("https://inner.example/", None),
        ("https://deep.inner.example/", None),
        ("https://notinner.example/", "http://proxy:3128"),
        ("https://dot.example/", "http://proxy:3128"),
        ("https://below.dot.example/", None),
        ("https://10.9.1.1/", None),
        ("https://10.10.1.1/", "http://proxy:3128"),
        ("https://192.0.2.7/", None),
        ("https://ported.example/", "http://proxy:3128"),
        ("https://ported.example:8443/", None),
    ],
)
def test_what_goes_through_the_proxy(url: str, through: str | None) -> None:
    exceptions = "inner.example, .dot.example,10.9.0.0/16,192.0.2.7,ported.example:8443"
    chosen = Registries(https_proxy="http://proxy:3128", no_proxy=exceptions)
    found = registries.proxy_for(chosen, URL(url))
    assert found == (URL(through) if through else None)
    assert registries.proxy_for(Registries(https_proxy="http://proxy:3128", no_proxy="*"), URL(url)) is None


def test_a_proxys_password_is_not_shown() -> None:
    assert registries.without_password("http://me:secret@proxy:3128") == "http://xxxxx:xxxxx@proxy:3128"
    assert registries.without_password("http://proxy:3128") == "http://proxy:3128"


def test_certificates_that_do_not_belong_together(tmp_path: Path) -> None:
    place = tmp_path / "hub.example:5000"
    place.mkdir()
    endpoint = Endpoint(url="https://hub.example:5000/", host="hub.example:5000")
    chosen = Registries(certificates=(str(tmp_path / "none"), str(tmp_path)))
    assert registries.tls_context(chosen, endpoint).verify_mode == ssl.CERT_REQUIRED
    (place / "me.cert").write_text("")
    with pytest.raises(Unavailable, match=r"missing key me\.key for client certificate me\.cert"):
        registries.tls_context(chosen, endpoint)
    (place / "me.cert").rename(place / "me.key")
    with pytest.raises(Unavailable, match=r"missing client certificate me\.cert for key me\.key"):
        registries.tls_context(chosen, endpoint)
    (place / "me.key").rename(place / "ca.crt")
    with pytest.raises(Unavailable, match="cannot be used"):
        registries.tls_context(chosen, endpoint)
