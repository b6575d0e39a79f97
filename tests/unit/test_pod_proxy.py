"""pods/proxy: which pod and port a path means, and what of a message goes on."""

from __future__ import annotations

from typing import Any

import pytest

from insula.agent import podproxy
from insula.api.kube.streams import target_of
from insula.errors import Conflict, Invalid


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("web", ("http", "web", "0")),
        ("web:8080", ("http", "web", "8080")),
        ("web:", ("http", "web", "0")),
        ("https:web:8443", ("https", "web", "8443")),
        ("http:web:", ("http", "web", "0")),
    ],
)
def test_names_of_proxied_pods(name: str, found: tuple[str, str, str]) -> None:
    assert target_of(name) == found


@pytest.mark.parametrize("name", ["ftp:web:21", "a:b:c:d", ":::"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(Invalid, match="must be NAME"):
        target_of(name)


def pod(*ports: int, address: str = "10.0.0.7") -> dict[str, Any]:
    containers = [{"name": f"c{port}", "ports": [{"containerPort": port}]} for port in ports]
    return {"metadata": {"name": "p"}, "spec": {"containers": containers}, "status": {"podIP": address}}


def test_where_a_pod_is() -> None:
    assert podproxy.target_of(pod(8080, 9090), "http", "0") == "http://10.0.0.7:8080"
    assert podproxy.target_of(pod(8080), "https", "99") == "https://10.0.0.7:99"
    assert podproxy.target_of(pod(), "http", "0") == "http://10.0.0.7:80"
    assert podproxy.target_of(pod(), "https", "0") == "https://10.0.0.7:443"
    for port in ("http", "70000", "-1", "\uff18"):
        with pytest.raises(Invalid):
            podproxy.target_of(pod(), "http", port)
    with pytest.raises(Conflict, match="no address yet"):
        podproxy.target_of(pod(address=""), "http", "0")


def test_a_location_of_the_pods_own_leads_through_the_proxy() -> None:
    target, prefix = "http://10.0.0.7:80", "/api/v1/namespaces/n/pods/p/proxy"
    assert podproxy.moved("/sub/", target, prefix) == f"{prefix}/sub/"
    assert podproxy.moved(f"{target}/a?b", target, prefix) == f"{prefix}/a?b"
    assert podproxy.moved(target, target, prefix) == f"{prefix}/"
    for elsewhere in ("https://example.com/", "//example.com/x", "relative"):
        assert podproxy.moved(elsewhere, target, prefix) == elsewhere
    info = {"namespace": "n", "pod": "p", "scheme": "http", "port": "0"}
    assert podproxy.prefix_of(info) == prefix
    assert podproxy.prefix_of({**info, "port": "81"}) == "/api/v1/namespaces/n/pods/http:p:81/proxy"


def test_headers_of_the_hop_stay_behind() -> None:
    sent = [("Host", "a"), ("Connection", "close"), ("X-A", "1"), ("X-A", "2"), ("Transfer-Encoding", "chunked")]
    assert list(podproxy.kept(sent).items()) == [("X-A", "1"), ("X-A", "2")]
