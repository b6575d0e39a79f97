"""Pure parts of images: chain ids, manifests, platforms, removal rules, changes, challenges, mount options."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest

from insula.errors import Conflict, Invalid, NotFound, Unsupported
from insula.host.mounts import overlay_option_text, overlay_options, parse_mountinfo
from insula.images import archive_out, changes, manifests, registry_auth, resolve
from insula.images.contract import Use
from insula.images.layers import chain_ids
from insula.images.manifests import Descriptor, Platform
from insula.images.metadata import Catalog, Entry
from insula.images.push import mount_source
from insula.images.reference import parse
from insula.images.registries import Registries, is_insecure

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
D1 = "sha256:" + "1" * 64


def entry(image: str, *digests: str) -> Entry:
    return Entry(id=image, layers=(), size_bytes=0, digests=digests)


def catalog(names: dict[str, str], *entries: Entry) -> Catalog:
    return Catalog(images={each.id: each for each in entries}, names=names)


def test_chain_ids_follow_the_specification() -> None:
    second = hashlib.sha256(f"{A} {B}".encode()).hexdigest()
    third = hashlib.sha256(f"sha256:{second} {A}".encode()).hexdigest()
    assert chain_ids([A, B, A]) == ["a" * 64, second, third]


def manifest(**changed: Any) -> bytes:
    document = {
        "schemaVersion": 2,
        "config": {"digest": A, "size": 1, "mediaType": manifests.OCI_CONFIG},
        "layers": [{"digest": B, "size": 2, "mediaType": manifests.OCI_LAYER}],
    }
    return msgspec.json.encode(document | changed)


def test_reads_a_manifest_and_an_index() -> None:
    read = manifests.parse_manifest(manifest())
    assert isinstance(read, manifests.Manifest) and read.layers[0].digest == B
    index = manifests.parse_manifest(msgspec.json.encode({"schemaVersion": 2, "manifests": [{"digest": A, "size": 3}]}))
    assert isinstance(index, manifests.Index)


@pytest.mark.parametrize(
    ("data", "fault", "sentence"),
    [
        (b"", Invalid, "malformed"),
        (b"[" * 100_000, Invalid, "malformed"),
        (b"[]", Invalid, "malformed"),
        (b'{"layers": 3}', Invalid, "malformed"),
        (manifest(layers=[{"digest": "sha256:../../etc/passwd", "size": 1}]), Invalid, "no sha256 digest"),
        (manifest(layers=[{"digest": B, "size": -1}]), Invalid, "size -1"),
        (manifest(layers=[{"digest": B, "size": 1}] * 501), Invalid, "501 layers"),
        (manifest(schemaVersion=1), Unsupported, "schema 1"),
        (manifest(manifests=[]), Invalid, "both an image and an index"),
        (b'{"x":"' + b"a" * 5_000_000 + b'"}', Invalid, "larger than"),
    ],
)
def test_refuses_hostile_manifests(data: bytes, fault: type[Exception], sentence: str) -> None:
    with pytest.raises(fault, match=sentence):
        manifests.parse_manifest(data)


@pytest.mark.parametrize(
    "data", [b"{", b'{"rootfs":{"diff_ids":["x"]}}', b'{"config":{"Env":3}}', b'{"rootfs":{"diff_ids":["../x"]}}']
)
def test_refuses_hostile_configurations(data: bytes) -> None:
    with pytest.raises(Invalid):
        manifests.parse_config(data)


def test_chooses_a_platform() -> None:
    def of(digest: str, os: str, architecture: str, variant: str = "") -> Descriptor:
        return Descriptor(digest=digest, size=1, platform=Platform(os=os, architecture=architecture, variant=variant))

    kinds = [("amd64", ""), ("arm", "v6"), ("arm", "v7"), ("arm64", "v8")]
    offered = [of(str(number), "linux", *kind) for number, kind in enumerate(kinds, 1)]
    choose = manifests.choose
    assert choose(offered, manifests.host_platform("x86_64")).digest == "1"  # type: ignore[union-attr]
    assert choose(offered, manifests.parse_platform("linux/arm")).digest == "3"  # type: ignore[union-attr]
    assert choose(offered, manifests.parse_platform("linux/arm/v6")).digest == "2"  # type: ignore[union-attr]
    assert choose(offered, manifests.parse_platform("aarch64")).digest == "4"  # type: ignore[union-attr]
    assert choose(offered, manifests.parse_platform("windows/amd64")) is None
    with pytest.raises(Invalid, match="not a platform"):
        manifests.parse_platform("linux/../x")


def test_finds_images_as_docker_does() -> None:
    known = catalog({"busybox:latest": A, "abc:latest": B}, entry(A, f"busybox@{D1}"), entry(B))
    for text in (A, "a" * 64, "aaaa", "sha256:aa", "busybox", f"busybox@{D1}", "docker.io/library/busybox:latest"):
        assert resolve.find(known, text) == A
    assert resolve.find(known, "abc") == B  # a name wins over the beginning of an id
    with pytest.raises(NotFound, match=r"^No such image: nope:latest"):
        resolve.find(known, "nope")
    with pytest.raises(Invalid, match="invalid reference format"):
        resolve.find(known, "not valid")
    twins = catalog({}, entry(A), entry("sha256:" + "ab" * 32))
    with pytest.raises(NotFound):
        resolve.find(twins, "a")


def test_removal_follows_docker() -> None:
    known = catalog({"a:1": A, "a:2": A, "b:1": B}, entry(A, f"a@{D1}"), entry(B))

    def plan(text: str, *, force: bool = False, uses: tuple[Use, ...] = ()) -> resolve.Removal:
        return resolve.plan_removal(known, text, force=force, uses=uses)

    assert plan("a:1") == resolve.Removal(image=A, names=("a:1",))
    assert plan("b:1") == resolve.Removal(image=B, names=("b:1",), delete=True)
    with pytest.raises(Conflict, match=r"unable to delete a{12} \(must be forced\) - image is referenced in multiple"):
        plan(A)
    assert plan(A, force=True).delete
    used = Use(image=B, instance="c" * 64)
    with pytest.raises(
        Conflict,
        match=r'^conflict: unable to remove repository reference "b:1" \(must force\) - container c{12} is using its '
        "referenced image b{12}$",
    ):
        plan("b:1", uses=(used,))
    orphaned = resolve.Removal(image=B, names=("b:1",), delete=True, orphan=True)
    assert plan("b:1", force=True, uses=(used,)) == plan(B, force=True, uses=(used,)) == orphaned
    with pytest.raises(Conflict, match=r"\(must be forced\) - image is being used by stopped container c{12}"):
        plan(B, uses=(used,))
    running = Use(image=B, instance="c" * 64, running=True)
    with pytest.raises(Conflict, match=r"\(cannot be forced\) - image is being used by running container c{12}"):
        plan(B, force=True, uses=(running,))
    assert plan("b:1", force=True, uses=(running,)) == resolve.Removal(image=B, names=("b:1",))
    disk = Use(image=B, instance="d" * 64, files=True)
    assert plan("b:1", force=True, uses=(disk,)) == resolve.Removal(image=B, names=("b:1",))
    with pytest.raises(Conflict, match=r"\(cannot be forced\) - image holds a disk or the kernel of machine d{12}"):
        plan(B, force=True, uses=(disk,))


def test_the_last_tag_takes_the_digests_of_its_repository_along() -> None:
    known = catalog({"a:1": A}, entry(A, f"a@{D1}"))
    assert resolve.plan_removal(known, "a:1", force=False, uses=()) == resolve.Removal(
        image=A, names=("a:1",), digests=(f"a@{D1}",), delete=True
    )


def test_selects_for_saving() -> None:
    known = catalog({"a:1": A, "a:2": B, "c:1": A}, entry(A), entry(B))

    def names(*texts: str) -> dict[str, tuple[str, ...]]:
        return {saved.entry.id: saved.names for saved in archive_out.select(known, texts)}

    assert names("a") == {A: ("a:1",), B: ("a:2",)}
    assert names("a:1", "c:1") == {A: ("a:1", "c:1")}
    assert names(A) == {A: ()}
    with pytest.raises(NotFound, match="No such image"):
        names("zzz")


def test_applies_dockerfile_instructions() -> None:
    base = {"Env": ["A=1", "B=2"], "Cmd": ["x"]}
    changed = changes.apply_changes(
        base,
        [
            "ENV A=3 C='4 5'", "env OLD way of writing", 'CMD ["/bin/a", "b"]', "ENTRYPOINT run it", "EXPOSE 80 53/udp", "USER 5",
            "LABEL k=v", "VOLUME /data", "WORKDIR sub", "STOPSIGNAL SIGINT", "ONBUILD RUN x", "HEALTHCHECK CMD curl x",
        ],
    )  # fmt: skip
    assert changed == {
        "Env": ["A=3", "B=2", "C=4 5", "OLD=way of writing"],
        "Cmd": ["/bin/a", "b"],
        "Entrypoint": ["/bin/sh", "-c", "run it"],
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "User": "5",
        "Labels": {"k": "v"},
        "Volumes": {"/data": {}},
        "WorkingDir": "/sub",
        "StopSignal": "SIGINT",
        "OnBuild": ["RUN x"],
        "Healthcheck": {"Test": ["CMD-SHELL", "curl x"]},
    }
    assert base == {"Env": ["A=1", "B=2"], "Cmd": ["x"]}
    for wrong in ("RUN x", "", "CMD", "ENV A=1 b", "EXPOSE x"):
        with pytest.raises(Invalid):
            changes.apply_changes({}, [wrong])


def test_reads_challenges() -> None:
    read = registry_auth.parse_challenges(
        'Bearer realm="https://auth.example/token",service="r, \\"s\\"",scope="repository:a/b:pull,push", Basic realm=x'
    )
    assert [each.scheme for each in read] == ["bearer", "basic"]
    assert read[0].parameters == {
        "realm": "https://auth.example/token",
        "service": 'r, "s"',
        "scope": "repository:a/b:pull,push",
    }
    assert registry_auth.parse_challenges("") == []
    assert registry_auth.parse_challenges("Basic") == [registry_auth.Challenge(scheme="basic")]


def test_only_loopback_is_trusted_without_tls() -> None:
    here = ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"]
    elsewhere = ["localhost.evil.example", "127.0.0.1.example", "10.0.0.1:5000", "[::2]:5000"]
    assert all(is_insecure(Registries(), each) for each in here)
    assert not any(is_insecure(Registries(), each) for each in elsewhere)


def test_mounts_a_layer_from_another_repository_of_the_same_registry() -> None:
    layer = archive_out.LayerBlob(diff_id=A, digest=D1, media_type="", size_bytes=1)
    known = catalog({}, Entry(id=A, layers=(layer,), size_bytes=0, digests=(f"localhost:5000/base@{B}",)))
    assert mount_source(known, parse("localhost:5000/mine"), D1) == "base"
    assert mount_source(known, parse("localhost:5001/mine"), D1) == ""
    assert mount_source(known, parse("localhost:5000/base"), D1) == ""
    assert mount_source(known, parse("localhost:5000/mine"), B) == ""


def test_overlay_options_golden() -> None:
    options = overlay_options(["/l/b:x", "/l/a,y"], "/u", "/w")
    assert (
        overlay_option_text(options)
        == "lowerdir=/l/b\\:x:/l/a\\,y,upperdir=/u,workdir=/w,index=off,redirect_dir=nofollow,metacopy=off"
    )
    assert overlay_options(["/a"], "", "", volatile=True) == [
        ("lowerdir", "/a"),
        ("redirect_dir", "nofollow"),
        ("metacopy", "off"),
    ]


def test_reads_mountinfo() -> None:
    text = (
        "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n"
        "37 35 0:5 / /proc rw - proc proc rw\n"
    )
    first, second = parse_mountinfo(text)
    assert (first.target, first.optional, first.kind) == ("/mnt 2", ("master:1", "shared:7"), "ext3")
    assert (second.optional, second.super_options) == ((), ("rw",))
