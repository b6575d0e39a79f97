"""BuildKit's words: what the frontend is asked, how faults, warnings and progress are told, definitions of results."""

from __future__ import annotations

import base64
import json

import pytest

from insula.api.docker.buildkit import definitions, faults
from insula.api.docker.buildkit.exporting import check, names_of, truth
from insula.api.docker.buildkit.frontend import Named, check_exports, check_syntax, read
from insula.api.docker.buildkit.messages import (
    CacheEntry,
    Definition,
    Exporter,
    RpcStatus,
    SourceInfo,
    StatusResponse,
    Timestamp,
)
from insula.api.docker.buildkit.progress import LOG_LIMIT, Told, timestamp
from insula.api.docker.buildkit.subrequests import lint_words, outline_text, outline_words, targets_text, targets_words
from insula.engine.building.contract import (
    ArgInfo,
    BuildFault,
    BuildRequest,
    Location,
    Outline,
    StageInfo,
    Vertex,
    VertexLog,
    Warning,
)
from insula.errors import Invalid, NotFound, Unsupported
from insula.model.instance import Ulimit
from insula.model.protobuf import decode


def test_what_docker_build_asks() -> None:
    asked = read("dockerfile.v0", {"image-resolve-mode": "local", "filename": "Dockerfile"})
    assert asked.context == Named(local="context") and asked.dockerfile_local == "dockerfile"
    assert asked.request == BuildRequest() and not asked.platforms_in_names


def test_every_option() -> None:
    asked = read(
        "dockerfile.v0",
        {
            "filename": "sub/Other",
            "target": "final",
            "build-arg:A": "1",
            "build-arg:SOURCE_DATE_EPOCH": "7",
            "build-arg:BUILDKIT_SANDBOX_HOSTNAME": "here",
            "label:l": "v",
            "platform": "linux/amd64,linux/arm64",
            "no-cache": "one,two",
            "image-resolve-mode": "pull",
            "force-network-mode": "host",
            "add-hosts": "a=1.2.3.4,b:::1",
            "shm-size": "1000",
            "ulimit": "nofile=1:2,nproc=3",
            "cgroup-parent": "/x",
            "cache-imports": json.dumps([{"Type": "registry", "Attrs": {"ref": "r/one"}}]),
            "cache-from": "r/two",
            "context:img": "docker-image://busybox",
            "context:more::linux/amd64": "local:more",
            "context:git": "https://x/y.git#main",
        },
        entitlements=["network.host"],
        imports=[CacheEntry("registry", {"ref": "r/three"})],
    )
    request = asked.request
    assert asked.filename == "sub/Other" and asked.platforms_in_names
    assert request.platforms == ("linux/amd64", "linux/arm64") and request.no_cache == ("one", "two") and request.pull
    assert request.extra_hosts == ("a:1.2.3.4", "b:::1") and request.network == "host" and request.hostname == "here"
    assert request.ulimits == (Ulimit(name="nofile", soft=1, hard=2), Ulimit(name="nproc", soft=3, hard=3))
    assert request.cache_from == ("r/three", "r/two", "r/one") and request.source_date_epoch == 7
    assert asked.named == {
        "img": Named(image="busybox"),
        "more": Named(local="more"),
        "git": Named(url="https://x/y.git#main"),
    }
    assert read("dockerfile.v0", {"no-cache": ""}).request.no_cache is True


@pytest.mark.parametrize(
    "options, context, dockerfile",
    [
        ({"context": "http://buildkit-session/abc"}, Named(upload="abc"), ""),
        ({"context": "https://x/y.tar"}, Named(url="https://x/y.tar"), ""),
        ({"context": "https://x/y.tar", "dockerfilekey": "dockerfile"}, Named(url="https://x/y.tar"), "dockerfile"),
        ({"contextkey": "other"}, Named(local="other"), "dockerfile"),
    ],
)
def test_contexts(options: dict[str, str], context: Named, dockerfile: str) -> None:
    asked = read("dockerfile.v0", options)
    assert (asked.context, asked.dockerfile_local) == (context, dockerfile)


@pytest.mark.parametrize(
    "frontend, options, kind",
    [
        ("gateway.v0", {"source": "example.com/own/frontend"}, Unsupported),
        ("buildpacks", {}, Unsupported),
        ("dockerfile.v0", {"attest:sbom": "generator=x"}, Unsupported),
        ("dockerfile.v0", {"force-network-mode": "bridge"}, Invalid),
        ("dockerfile.v0", {"ulimit": "nofile"}, Invalid),
        ("dockerfile.v0", {"add-hosts": "a"}, Invalid),
        ("dockerfile.v0", {"shm-size": "-1"}, Invalid),
        ("dockerfile.v0", {"multi-platform": "maybe"}, Invalid),
        ("dockerfile.v0", {"cache-imports": "{"}, Invalid),
        ("dockerfile.v0", {"cache-imports": '[{"Type":"s3"}]'}, Unsupported),
        ("dockerfile.v0", {"context:x": "oci-layout://y"}, Unsupported),
    ],
)
def test_refused(frontend: str, options: dict[str, str], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        read(frontend, options)


def test_known_frontends_behind_a_syntax_line() -> None:
    read("gateway.v0", {"source": "docker/dockerfile:1"})
    read("gateway.v0", {"source": "docker.io/docker/dockerfile:1.7-labs"})
    with pytest.raises(Unsupported):
        read("dockerfile.v0", {}, entitlements=["device"])
    check_exports([CacheEntry("inline")])
    with pytest.raises(Unsupported):
        check_exports([CacheEntry("registry", {"ref": "x"})])


def test_syntax_lines() -> None:
    for text in ("FROM x\n# syntax=other\n", "# syntax = docker/dockerfile:1\nFROM x\n", "# escape=`\nFROM x\n"):
        check_syntax(text, {})
    check_syntax("# syntax=other\n", {"build-arg:BUILDKIT_SYNTAX": "docker/dockerfile:1"})
    for text in ("# syntax=example.com/own/frontend\nFROM x\n", "\ufeff# escape=`\n#Syntax=other\nFROM x\n"):
        with pytest.raises(Unsupported):
            check_syntax(text, {})


def test_exporters() -> None:
    check([Exporter("moby", {"name": "a,b:2"}), Exporter("local"), Exporter("oci", {"tar": "true"})])
    for bad in (Exporter("weird"), Exporter("oci", {"tar": "false"}), Exporter("image", {"push-by-digest": "true"})):
        with pytest.raises(Unsupported):
            check([bad])
    with pytest.raises(Invalid):
        check([Exporter("image", {"name": "Not A Name"})])
    assert names_of({"name": "a,host:5000/b:2"}) == ["docker.io/library/a:latest", "host:5000/b:2"]
    assert truth({"push": ""}, "push") and truth({"push": "true"}, "push") and not truth({"push": "false"}, "push")


# --- progress and faults --------------------------------------------------------------------------------------------


async def _pieces(told: Told) -> list[StatusResponse]:
    told.end()
    return [decode(piece, StatusResponse) async for piece in told.read()]


async def test_progress_in_buildkits_words() -> None:
    told, other = Told(), Told()
    told.dockerfile = SourceInfo("Dockerfile", b"FROM x\n")
    started = "2026-01-02T03:04:05.123456789Z"
    told.vertex(Vertex(digest="d", name="[1/2] RUN true", inputs=("e",), started=started))
    told.vertex(Vertex(digest="m", name="ENV A=b", metadata=True))
    told.log(VertexLog(vertex="d", stream=2, data=b"out", time=started))
    told.warning(Warning(vertex="d", message="sentence", rule="Rule", location=Location(start=1, end=1)))
    vertex, log, warning = await _pieces(told)
    assert vertex.vertexes[0].name == "[1/2] RUN true" and vertex.vertexes[0].started == Timestamp(
        1767323045, 123456789
    )
    assert vertex.vertexes[0].digest == log.logs[0].vertex == warning.warnings[0].vertex == told.digest("d")
    assert vertex.vertexes[0].inputs == (told.digest("e"),) and other.digest("d") != told.digest("d")
    assert (log.logs[0].stream, log.logs[0].data) == (2, b"out")
    assert warning.warnings[0].short == b"Rule: sentence" and warning.warnings[0].info == told.dockerfile
    assert timestamp("") is None


async def test_output_is_clipped() -> None:
    told = Told()
    for _ in range(5):
        told.log(VertexLog(vertex="d", stream=1, data=bytes(LOG_LIMIT // 2), time="2026-01-02T03:04:05Z"))
    logs = [log for piece in await _pieces(told) for log in piece.logs]
    assert b"".join(log.data for log in logs) == bytes(LOG_LIMIT) + b"\n[output clipped, log limit 2MiB reached]\n"


def test_a_fault_shows_its_lines() -> None:
    told = Told()
    told.dockerfile = SourceInfo("Dockerfile", b"FROM x\nRUN false\n")
    fault = faults.told(BuildFault("it failed", location=Location(start=2, end=2), vertex="v", code=3), told)
    assert fault.code == 2 and str(fault) == "it failed"
    status = decode(fault.details, RpcStatus)
    details = {each.type_url: json.loads(each.value) for each in status.details}
    source = details["github.com/moby/buildkit/errdefs.Source+json"]
    assert source["ranges"] == [{"start": {"line": 2}, "end": {"line": 2}}]
    assert base64.b64decode(source["info"]["data"]) == told.dockerfile.data
    assert details["github.com/moby/buildkit/gatewayapi.ExitMessage+json"] == {"Code": 3}
    assert faults.told(NotFound("no such image"), told).code == 2


def test_results_as_definitions() -> None:
    definition = definitions.of_result("abc#1")
    assert definitions.result_of(definition) == "abc#1"
    assert len(definition.metadata) == 1 and len(definition.ops) == 2
    with pytest.raises(Unsupported):
        definitions.result_of(Definition((b"",)))


def test_answers_about_a_dockerfile() -> None:
    made = BuildRequest(dockerfile="FROM x AS a\n", target="a")
    warning = Warning(vertex="", message="said", rule="Rule", detail="what it means", location=Location(start=1, end=1))
    outline = Outline(
        stages=(
            StageInfo(name="a", base="x", default=False, location=Location(start=1, end=1), description="first"),
            StageInfo(name="", base="a", default=True, location=Location(start=2, end=2)),
        ),
        args=(ArgInfo(name="V", default="1", location=Location(start=3, end=3), description="version"),),
        secrets=(("key", True),),
        ssh=(("default", False),),
        caches=("pip",),
        warnings=(warning,),
    )
    words = outline_words(outline, made)
    assert words["args"][0]["value"] == "1" and words["secrets"] == [{"name": "key", "required": True}]
    assert words["args"][0]["location"]["ranges"][0]["start"]["line"] == 3
    assert outline_text(outline, made).splitlines()[0] == "TARGET: a"
    assert [each.get("default") for each in targets_words(outline, made)["targets"]] == [None, True]
    assert targets_text(outline).splitlines()[1].split() == ["a", "first"]
    (row,) = lint_words([warning], made)["warnings"]
    assert (row["ruleName"], row["detail"], row["description"]) == ("Rule", "said", "what it means")
