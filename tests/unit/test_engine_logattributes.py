"""What a log says of its instance: tags, labels, variables."""

from __future__ import annotations

import pytest

from insula.engine.logattributes import attributes, check_options, details, tag_of
from insula.engine.loglimits import limit_of
from insula.errors import Invalid
from insula.host.conmon import Launch, arguments
from insula.images.contract import Image, ImageConfig
from insula.model.instance import InstanceConfig

ID = "0123456789abcdef" * 4
IMAGE = Image(
    id="sha256:" + "ab" * 32, names=("i:latest",), digests=(), created="", architecture="amd64", os="linux", size_bytes=0,
    layers=(), config=ImageConfig(labels={"of.image": "1", "x": "image"}, env=("E=image", "F=f")),
)  # fmt: skip


def config(driver: str = "json-file", **options: str) -> InstanceConfig:
    return InstanceConfig(
        name="web", image="i", labels={"x": "mine", "y.z": "2"}, env=("E=mine", "NONE"), log_driver=driver,
        log_options={name.replace("_", "-"): value for name, value in options.items()},
    )  # fmt: skip


def test_fields_of_a_tag() -> None:
    text = "{{.ID}}/{{ .FullID }}/{{.Name}}/{{.ImageID}}/{{.ImageFullID}}/{{.ImageName}}/{{.DaemonName}}"
    assert tag_of(text, config(), IMAGE, ID) == "/".join(
        (ID[:12], ID, "web", "ab" * 6, "sha256:" + "ab" * 32, "i", "docker")
    )
    assert tag_of("plain", config(), None, ID) == "plain"


def test_what_the_options_choose() -> None:
    assert attributes(config(), IMAGE, ID) == {}
    assert attributes(config(labels="x,nosuch", env="E,NONE"), IMAGE, ID) == {"x": "mine", "E": "mine"}
    found = attributes(config(labels_regex="^(y|of)", env_regex="^F", tag="{{.Name}}"), IMAGE, ID)
    assert found == {"of.image": "1", "y.z": "2", "F": "f", "tag": "web"}
    assert details({"b": "x y", "a": "1,2"}) == "a=1%2C2,b=x+y"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tag": "{{.Foo}}"}, "'.Foo' is not known here"),
        ({"tag": "{{.Name"}, "unclosed action"),
        ({"tag": "{{printf}}"}, "'printf' is not known here"),
        ({"env-regex": "("}, "invalid pattern"),
        ({"labels-regex": "(a+)+"}, "too complex"),
    ],
)
def test_refusals(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        check_options(options)


def test_compression_needs_rotation() -> None:
    sentence = "compress cannot be true when max-file is less than 2 or max-size is not set"
    for options in ({"compress": "true"}, {"compress": "true", "max_size": "1m"}):
        with pytest.raises(Invalid, match=sentence):
            limit_of(config(**options))
    assert limit_of(config(compress="true", max_size="1m", max_file="3")) is not None
    assert limit_of(config(compress="false")) is None
    assert limit_of(config("journald")) == limit_of(config("local"))


def test_the_journal_is_conmons_work() -> None:
    launch = Launch(
        conmon="c", runtime="r", runtime_root="/r", id="i", uuid="u", name="n", bundle="/b", persist="/p",
        log_path="/log", journal=True, tag="t",
    )  # fmt: skip
    text = " ".join(arguments(launch))
    assert "-l k8s-file:/log -l journald --log-tag t" in text
