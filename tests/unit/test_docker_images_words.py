"""Images, events and the node in the words of each version of the Docker Engine API."""

from __future__ import annotations

import msgspec
import pytest

from insula.api.docker.events import event_words
from insula.api.docker.images_words import has_tag, inspect_words, repository_of, summary_words
from insula.api.docker.info import registry_words
from insula.engine.contract import Event
from insula.errors import Conflict
from insula.images import resolve
from insula.images.contract import Image, ImageConfig, Use
from insula.images.history import history_rows
from insula.images.layers import LayerRecord, usage_of
from insula.images.metadata import Catalog, Entry
from insula.images.registries import Registries

ID, OTHER, THIRD = ("sha256:" + digit * 64 for digit in "abc")


def image(**changed: object) -> Image:
    made = Image(
        id=ID, names=("a:1", "b:1"), digests=(f"a@{OTHER}",), created="2024-01-02T03:04:05Z", architecture="amd64",
        os="linux", size_bytes=7, layers=(OTHER,), config=ImageConfig(command=("sh",), raw={"config": {"Shell": ["/x"]}}),
        tagged_at="2024-05-06T07:08:09Z",
    )  # fmt: skip
    return msgspec.structs.replace(made, **changed)


def test_rows_by_version() -> None:
    newest = summary_words(image(), (1, 51), containers=2, shared=3)
    assert (newest["Containers"], newest["SharedSize"], "VirtualSize" in newest) == (2, 3, False)
    assert summary_words(image(), (1, 43))["VirtualSize"] == 7
    nameless = image(names=(), digests=())
    assert summary_words(nameless, (1, 43))["RepoTags"] == []
    old = summary_words(nameless, (1, 42))
    assert (old["RepoTags"], old["RepoDigests"]) == (["<none>:<none>"], ["<none>@<none>"])


@pytest.mark.parametrize(
    ("version", "there", "absent"),
    [
        ((1, 43), {"VirtualSize", "Container", "ContainerConfig", "Created"}, set()),
        ((1, 44), {"Container"}, {"VirtualSize", "Created"}),
        ((1, 45), {"Parent", "DockerVersion"}, {"Container", "ContainerConfig"}),
        ((1, 51), {"Parent", "Author", "Comment"}, {"VirtualSize", "Created"}),
    ],
)
def test_an_image_by_version(version: tuple[int, int], there: set[str], absent: set[str]) -> None:
    words = inspect_words(image(created=""), version)
    assert there <= set(words) and not absent & set(words)


def test_what_an_image_never_had_is_told_to_old_clients_only() -> None:
    assert inspect_words(image(), (1, 49))["Config"]["AttachStdin"] is False
    config = inspect_words(image(), (1, 50))["Config"]
    assert not {"Hostname", "Tty", "Image", "OpenStdin"} & set(config)
    assert (config["Cmd"], config["Env"], config["Labels"], config["Shell"]) == (["sh"], None, None, ["/x"])
    assert inspect_words(image())["Metadata"] == {"LastTagTime": "2024-05-06T07:08:09Z"}


def test_events_by_version() -> None:
    event = Event(type="container", action="start", id="x", attributes={"image": "i"}, time_ns=5)
    assert {"status", "id", "from"} <= set(event_words(event, (1, 51)))
    assert not {"status", "id", "from"} & set(event_words(event, (1, 52)))


def test_registries_in_info() -> None:
    settings = Registries(
        insecure=("10.0.0.0/8", "hub.test:5000"), mirrors=("https://near.test",), https_proxy="http://me:pw@proxy:1"
    )
    words = registry_words(settings, (1, 51))
    registry = words["RegistryConfig"]
    assert registry["InsecureRegistryCIDRs"] == ["::1/128", "127.0.0.0/8", "10.0.0.0/8"]
    assert registry["Mirrors"] == registry["IndexConfigs"]["docker.io"]["Mirrors"] == ["https://near.test/"]
    assert registry["IndexConfigs"]["hub.test:5000"]["Secure"] is False
    assert words["HttpsProxy"] == "http://xxxxx:xxxxx@proxy:1"
    assert "AllowNondistributableArtifactsCIDRs" in registry_words(settings, (1, 48))["RegistryConfig"]


@pytest.mark.parametrize(
    ("text", "tagged", "repository"),
    [
        ("a", False, "a"),
        ("a:1", True, "a"),
        ("host:5000/a", False, "host:5000/a"),
        ("host:5000/a:1", True, "host:5000/a"),
        (f"a@{ID}", True, "a"),
        (f"a:1@{ID}", True, "a"),
    ],
)
def test_names(text: str, tagged: bool, repository: str) -> None:
    assert (has_tag(text), repository_of(text)) == (tagged, repository)


def test_history_knows_what_an_image_was_made_from() -> None:
    base = image(id=OTHER, names=("base:1",))
    config = ImageConfig(raw={"history": [{"created_by": "one"}, {"created_by": "two", "empty_layer": True}, {}]})
    rows = history_rows(image(config=config), [10, 30], [base])
    assert [(row["Id"], row["Size"], row["Tags"]) for row in rows] == [
        (ID, 30, ["a:1", "b:1"]),
        (OTHER, 0, ["base:1"]),
        ("<missing>", 10, None),
    ]


def test_what_images_take_on_the_disk() -> None:
    sizes = {"x": 5, "y": 7, "z": 100}
    usage = usage_of(
        {ID: ["x", "y"], OTHER: ["x", "z"], THIRD: []},
        lambda chain: LayerRecord(diff_id="", size_bytes=sizes[chain], has_root=True),
    )
    assert usage.layers_bytes == 112
    assert usage.shared_bytes == {ID: 5, OTHER: 5, THIRD: 0}


# --- removal ----------------------------------------------------------------------------------------------------


def family() -> Catalog:
    """A grandchild with a name, made from a nameless child of a named base."""
    entries = {
        each.id: each
        for each in (
            Entry(id=ID, layers=(), size_bytes=0),
            Entry(id=OTHER, layers=(), size_bytes=0, parent=ID),
            Entry(id=THIRD, layers=(), size_bytes=0, parent=OTHER),
        )
    }
    return Catalog(images=entries, names={"base:1": ID, "top:1": THIRD})


def test_children_keep_their_parents() -> None:
    with pytest.raises(Conflict, match=r"cannot be forced.*image has dependent child images"):
        resolve.plan_removal(family(), ID, force=True, uses=[])
    plan = resolve.plan_removal(family(), "base:1", force=False, uses=[])
    assert plan.names == ("base:1",) and not plan.delete


def test_nameless_parents_go_with_the_last_child() -> None:
    plan = resolve.plan_removal(family(), "top:1", force=False, uses=[])
    assert plan.delete and plan.parents == (OTHER,)
    assert not resolve.plan_removal(family(), "top:1", force=False, uses=[], prune=False).parents
    used = [Use(image=OTHER, instance="i")]
    assert not resolve.plan_removal(family(), "top:1", force=False, uses=used).parents
