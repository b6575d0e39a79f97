"""What a build decides before and beside its steps: stages, variables, names, mounts, history, the order of its lines."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from insula.api.docker.build_lines import ClassicLines
from insula.engine.building.cachefrom import Hit, match
from insula.engine.building.contract import BuildFault, BuildRequest, Folder, ImageContext, Vertex, VertexLog
from insula.engine.building.copying import read_mode
from insula.engine.building.mountwords import Mount, parse_mount
from insula.engine.building.planning import Plan, plan, platform_of
from insula.engine.building.reading import outline_of, wish_of
from insula.engine.building.remote import Repository, repository
from insula.engine.building.saying import said_metadata, said_run
from insula.errors import Invalid
from insula.images.dockerfile.instructions import parse
from insula.images.manifests import Platform

AMD, ARM = Platform(os="linux", architecture="amd64"), Platform(os="linux", architecture="arm64", variant="v8")
THREE = """ARG BASE=busybox
FROM $BASE AS one
RUN a
FROM ${BASE:-x} AS two
LABEL l=1
COPY --from=one /a /b
FROM two
RUN --mount=type=bind,from=one,target=/x b
FROM scratch AS lonely
"""


def planned(text: str, *, platform: Platform = AMD, **request: Any) -> Plan:
    return plan(parse(text), BuildRequest(**request), platform, AMD)


def test_only_what_the_target_needs() -> None:
    assert [each.name for each in planned(THREE, target="two").stages] == ["one", "two"]
    assert [each.name for each in planned(THREE).stages] == ["lonely"]
    assert [each.name for each in planned(THREE, target="2").stages] == ["one", "two", "2"]
    found = planned(THREE, target="one")
    assert (found.total, found.numbers) == (3, {(-1, 0): 1, (0, 0): 2, (0, 1): 3})
    with pytest.raises(BuildFault, match='target stage "zz" could not be found'):
        planned(THREE, target="zz")


def test_variables_of_from() -> None:
    assert planned(THREE, target="one").bases[0] == "busybox"
    assert planned(THREE, target="one", build_args={"BASE": "other"}).bases[0] == "other"
    assert planned("FROM x:$TARGETARCH$TARGETVARIANT-$BUILDARCH", platform=ARM).bases[0] == "x:arm64-amd64"
    with pytest.raises(BuildFault, match="should not be blank"):
        planned("FROM $NOTHING")
    stage = parse("FROM --platform=$BUILDPLATFORM x").stages[0]
    assert platform_of(stage, planned("FROM x", platform=ARM).globals, ARM).architecture == "amd64"
    with pytest.raises(BuildFault, match="failed to parse platform"):
        platform_of(parse("FROM --platform=a/b/c/d x").stages[0], {}, AMD)


def test_stages_that_do_not_exist() -> None:
    with pytest.raises(BuildFault, match="circular dependency on stage: x"):
        planned("FROM a AS x\nCOPY --from=x /a /b")
    with pytest.raises(BuildFault, match="invalid stage index 5"):
        planned("FROM a\nCOPY --from=5 /a /b")
    # A named context goes before a stage of that name.
    found = planned(THREE, target="two", named_contexts={"one": ImageContext(reference="x")})
    assert [each.name for each in found.stages] == ["two"]


def test_names_of_steps() -> None:
    found = planned(THREE, target="2")
    two, last = found.stages[1], found.stages[2]
    assert found.step_name(two, 2, "COPY") == "[two 2/2] COPY"
    assert found.step_name(last, 1, "RUN") == "[stage-2 1/1] RUN"
    assert planned("FROM a\nRUN b").step_name(parse("FROM a\nRUN b").stages[0], 1, "RUN b") == "[2/2] RUN b"


def test_what_a_context_must_hold() -> None:
    assert wish_of(planned("FROM a\nCOPY b c/ /d/\nADD http://x/y /z\nCOPY --from=q /r /s")).paths == ("b", "c")
    assert wish_of(planned("FROM a\nCOPY . /")).paths is None
    assert wish_of(planned("FROM a\nCOPY $x /")).paths is None
    assert wish_of(planned("FROM a\nRUN --mount=target=/x,source=y b")).paths == ("y",)


def test_outlines() -> None:
    text = "# FOO what it is\nARG FOO=1\n# app the program\nFROM a AS app\n"
    text += "RUN --mount=type=secret,id=s,required x\nCMD x \\\n\n y\n"
    found = outline_of(parse(text), planned(text))
    assert [(each.name, each.description, each.default) for each in found.stages] == [("app", "the program", True)]
    assert [(each.name, each.default, each.description) for each in found.args] == [("FOO", "1", "what it is")]
    assert found.secrets == (("s", True),)
    assert [each.rule for each in found.warnings] == ["NoEmptyContinuation", "JSONArgsRecommended"]


# --- mounts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("target=/a", Mount(target="/a")),
        ("type=bind,src=s,dst=b,from=x,rw", Mount(source_stage="x", source="s", target="/w/b", readonly=False)),
        ("type=cache,target=/c", Mount(kind="cache", target="/c", id="/c")),
        ("type=cache,target=c,sharing=locked,mode=0700,uid=5",
         Mount(kind="cache", target="/w/c", id="/w/c", sharing="locked", mode=0o700, uid=5)),
        ("type=tmpfs,target=/t,size=64m", Mount(kind="tmpfs", target="/t", size_bytes=64 << 20)),
        ("type=secret,id=a/b", Mount(kind="secret", id="a/b", target="/run/secrets/b")),
        ("type=secret,id=a,env=E", Mount(kind="secret", id="a", env="E")),
        ("type=ssh", Mount(kind="ssh", id="default", target="/run/buildkit/ssh_agent.0")),
        ("type=bind,target=$T", Mount(target="/tt")),
        ('"target=/a,b"', Mount(target="/a,b")),
    ],
)  # fmt: skip
def test_mounts(text: str, mount: Mount) -> None:
    assert parse_mount(text, {"T": "/tt"}, working_dir="/w") == mount


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "target is required"),
        ("type=foo,target=/a", 'unsupported mount type "foo"'),
        ("target", "must be a key=value pair"),
        ("target=/a,frob=1", "unexpected key 'frob'"),
        ("target=/", "invalid mount target"),
        ("target=/a,ro=maybe", "invalid value for readonly"),
        ("type=cache,target=/a,mode=9", "invalid value 9 for mode"),
        ("type=cache,target=/a,sharing=x", "unsupported sharing"),
        ("type=tmpfs,target=/a,size=x", "invalid value for size"),
        ("type=secret", "source, target required"),
    ],
)
def test_wrong_mounts(text: str, sentence: str) -> None:
    with pytest.raises(Invalid, match=re.escape(sentence)):
        parse_mount(text, {})


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://h/a.git", Repository(url="https://h/a.git")),
        ("https://h/a.git#v1:sub/dir", Repository(url="https://h/a.git", ref="v1", folder="sub/dir")),
        ("git://h/a#:x", Repository(url="git://h/a", folder="x")),
        ("git@h:a/b.git", Repository(url="git@h:a/b.git")),
        ("ssh://git@h/a", Repository(url="ssh://git@h/a")),
        ("github.com/a/b", Repository(url="https://github.com/a/b")),
        ("https://h/a.tar.gz", None),
        ("a.git", None),
        ("file:///a.git", None),
        ("ext::sh -c x.git", None),
    ],
)
def test_repositories(url: str, found: Repository | None) -> None:
    assert repository(url) == found


@pytest.mark.parametrize(
    "url", ["https://h/a.git#--upload-pack=x", "git://h/a b", "https://h/a.git#x y", "git://h/a#:../.."]
)
def test_hostile_repositories(url: str) -> None:
    with pytest.raises(Invalid):
        repository(url)


def test_modes() -> None:
    assert (read_mode("755"), read_mode("0644"), read_mode("4755"), read_mode("")) == (0o755, 0o644, 0o4755, None)
    for wrong in ("8", "77777", "u+x", "x"):
        with pytest.raises(Exception, match=r"octal"):
            read_mode(wrong)


# --- history and --cache-from ---------------------------------------------------------------------------------------


def test_history_words() -> None:
    assert said_metadata("classic", ("/bin/sh", "-c"), 'CMD ["a"]') == '/bin/sh -c #(nop)  CMD ["a"]'
    assert said_metadata("buildkit", (), "ENV a=b") == "ENV a=b"
    assert said_run("classic", ("/bin/sh", "-c", "x"), {"a": "1"}) == "|1 a=1 /bin/sh -c x"
    assert said_run("buildkit", ("/bin/sh", "-c", "x"), {}) == "RUN /bin/sh -c x # buildkit"


def test_steps_of_other_images() -> None:
    image = {
        "history": [
            {"created_by": "base"},
            {"created_by": "ENV", "empty_layer": True, "created": "t1"},
            {"created_by": "RUN", "created": "t2"},
        ],
        "rootfs": {"diff_ids": ["d0", "d1"]},
    }
    base = [{"created_by": "base"}]
    env = [*base, {"created_by": "ENV", "empty_layer": True}]
    assert match(image, ["d0"], base, "ENV") == Hit("t1", None)
    assert match(image, ["d0"], env, "RUN") == Hit("t2", 1)
    assert match(image, ["d0"], env, "RUN other") is None
    assert match(image, ["other"], env, "RUN") is None
    assert match(image, ["d0", "d1"], [*env, {"created_by": "RUN"}], "more") is None
    assert match({"history": image["history"], "rootfs": {}}, [], [], "base") is None


# --- lines of the classic endpoint --------------------------------------------------------------------------------


def text_of(lines: ClassicLines) -> str:
    return "".join(json.loads(line).get("stream", "") for line in lines.take().splitlines())


def vertex(number: int, **more: Any) -> Vertex:
    return Vertex(digest=f"d{number}", name="n", number=number, total=3, text=f"RUN {number}", **more)


def test_lines_come_in_the_order_of_the_steps() -> None:
    lines = ClassicLines()
    first, second = vertex(1, started="t"), vertex(2, started="t", container="c" * 64)
    lines.vertex(second)
    lines.log(VertexLog(vertex="d2", stream=1, data=b"two\n", time="t"))
    assert text_of(lines) == ""
    lines.vertex(first)
    lines.log(VertexLog(vertex="d1", stream=2, data=b"one\n", time="t"))
    assert text_of(lines) == "Step 1/3 : RUN 1\n\x1b[91mone\n\x1b[0m"
    lines.vertex(msgspec.structs.replace(first, completed="t", cached=True, image="sha256:" + "a" * 64))
    assert text_of(lines) == (
        " ---> Using cache\n ---> aaaaaaaaaaaa\nStep 2/3 : RUN 2\n ---> Running in cccccccccccc\ntwo\n"
    )
    lines.vertex(msgspec.structs.replace(second, container_removed=True))
    lines.vertex(msgspec.structs.replace(second, container_removed=True, completed="t", image="sha256:" + "b" * 64))
    assert text_of(lines) == " ---> Removed intermediate container cccccccccccc\n ---> bbbbbbbbbbbb\n"


def test_a_step_that_waits_holds_only_so_much() -> None:
    lines = ClassicLines()
    lines.vertex(vertex(2, started="t"))
    for _ in range(200):
        lines.log(VertexLog(vertex="d2", stream=1, data=b"x" * 100_000, time="t"))
    lines.vertex(vertex(1, started="t", completed="t"))
    told = text_of(lines)
    assert len(told) < 5_000_000 and "left out" in told


def test_characters_come_whole_and_slow_readers_lose_output_only() -> None:
    lines = ClassicLines()
    lines.vertex(vertex(1, started="t"))
    for piece in (b"\xc3", b"\xa9", b"\xff"):
        lines.log(VertexLog(vertex="d1", stream=1, data=piece, time="t"))
    assert text_of(lines) == "Step 1/3 : RUN 1\né\N{REPLACEMENT CHARACTER}"
    for _ in range(300):
        lines.log(VertexLog(vertex="d1", stream=1, data=b"x" * 100_000, time="t"))
    lines.vertex(vertex(1, started="t", completed="t", image="sha256:" + "a" * 64))
    told = text_of(lines)
    assert len(told) < 18_000_000 and told.count("reads too slowly") == 1 and told.endswith(" ---> aaaaaaaaaaaa\n")


def test_quiet_says_nothing() -> None:
    lines = ClassicLines(quiet=True)
    lines.vertex(vertex(1, started="t", completed="t"))
    assert lines.take() == b""


def test_requests_have_defaults() -> None:
    assert BuildRequest(context=Folder(path="/x")).network == "default"
