"""The credentials of the Kubernetes door: made once, looked into again only when something has changed."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from insula.api.kube import certificates, pki
from insula.api.kube.pki import Credential, Pki, kubeconfig

FILES = ("ca.key", "ca.crt", "server.key", "server.crt", "admin.key", "admin.crt", "sa.key")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Pki(tmp_path, ("10.88.0.1",))
    before = contents(tmp_path)
    assert [path.stat().st_mode & 0o77 for path in sorted(tmp_path.glob("*.key"))] == [0, 0, 0, 0]
    monkeypatch.setattr(Pki, "_make", lambda _self: pytest.fail("nothing has changed"))
    again = Pki(tmp_path, ("10.88.0.1",))
    assert contents(tmp_path) == before
    assert again.ca_pem == made.ca_pem
    assert isinstance(again.server_context(), ssl.SSLContext)
    assert again.signing_key.private_numbers() == made.signing_key.private_numbers()


def test_fewer_names_need_nothing_and_more_need_another_certificate(tmp_path: Path) -> None:
    Pki(tmp_path, ("10.88.0.1",))
    before = contents(tmp_path)
    Pki(tmp_path)
    assert contents(tmp_path) == before
    Pki(tmp_path, ("10.99.0.1", "insula.example"))
    after = contents(tmp_path)
    assert {name for name in FILES if before[name] != after[name]} == {"server.key", "server.crt"}
    ca = certificates.read_certificate(after["ca.crt"])
    pair = after["server.crt"], after["server.key"]
    assert certificates.good_until(*pair, ca, ("10.99.0.1", "insula.example", "localhost"))
    assert not certificates.good_until(*pair, ca, ("10.88.0.1",))
    assert not certificates.good_until(after["server.crt"], after["admin.key"], ca, ())


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in ("server.crt", "admin.crt", "server.key", "checked.json") for how in ("gone", "empty")]
    + [("sa.key", "gone")],
)
def test_what_is_lost_is_made_anew(tmp_path: Path, name: str, how: str) -> None:
    Pki(tmp_path)
    before = contents(tmp_path)
    if how == "gone":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(b"")
    Pki(tmp_path).server_context()
    assert (tmp_path / name).read_bytes()
    assert contents(tmp_path)["ca.crt"] == before["ca.crt"]


def test_keys_that_are_none_are_told(tmp_path: Path) -> None:
    Pki(tmp_path)
    (tmp_path / "sa.key").write_bytes(b"not a key")
    with pytest.raises(ValueError):
        Pki(tmp_path)


def test_renewed_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Pki(tmp_path)
    before = contents(tmp_path)
    later = datetime.now(UTC) + certificates.LEAF_LIFE - certificates.RENEW_BEFORE + timedelta(hours=1)
    for module in (pki, certificates):
        monkeypatch.setattr(module, "now", lambda: later)
    Pki(tmp_path)
    after = contents(tmp_path)
    assert {name for name in FILES if before[name] != after[name]} == {
        *("server.key", "server.crt"),
        *("admin.key", "admin.crt"),
    }


def test_a_kubeconfig_is_yaml_whatever_the_user_is_called() -> None:
    text = kubeconfig("https://127.0.0.1:6443", b"ca", Credential(b"certificate", b"key"), user='a: "b"\n#c')
    found = yaml.safe_load(text)
    assert found["users"][0]["name"] == found["contexts"][0]["context"]["user"] == 'a: "b"\n#c'
    assert found["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:6443"
    assert found["current-context"] == found["contexts"][0]["name"]
