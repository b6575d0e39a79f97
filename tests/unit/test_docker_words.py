"""The pure parts of the Docker door: versions, routes, filters, frames, detach keys, what inspect and lists show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula import errors
from insula.api.docker import app
from insula.api.docker.archives import stat_header, without_host_files
from insula.api.docker.containers_filter import choose, moment_ns, moment_of
from insula.api.docker.containers_inspect import ago, inspect_words, status_text, summary_words
from insula.api.docker.containers_list import parse_ps
from insula.api.docker.containers_streams import LineShaper
from insula.api.docker.errors import sentence, status_of
from insula.api.docker.events import event_words, passes
from insula.api.docker.filters import parse
from insula.api.docker.images_transfer import auth_of
from insula.api.docker.images_words import bar, name_of, pattern_matches, progress_words
from insula.api.docker.route import Table
from insula.api.docker.stats import cpu_words, stats_words, system_cpu_ns
from insula.api.docker.streams import DetachKeys, frame, parse_detach_keys
from insula.api.docker.versions import split
from insula.drivers.driver import Channel, Stats
from insula.engine.contract import Event, Instance, LogLine, PathStat, ResolvedMount, State
from insula.images.contract import Auth, Image, ImageConfig, Progress
from insula.model.instance import InstanceConfig, MountConfig, PortMapping
from insula.model.pattern import compile_pattern
from insula.networks.contract import Endpoint, Network, Published

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
IMAGE = Image(
    id="sha256:" + "a" * 64,
    names=("box:latest",),
    digests=(),
    created="2025-01-01T00:00:00Z",
    architecture="amd64",
    os="linux",
    size_bytes=10,
    layers=(),
    config=ImageConfig(
        command=("sh",),
        env=("PATH=/bin", "A=image"),
        labels={"from": "image", "both": "image"},
        exposed_ports=("81/tcp",),
        volumes=("/data",),
        user="5",
        working_dir="/w",
    ),
)
BRIDGE = Network(id="net1", name="default", subnet="10.0.0.0/24", builtin=True)
ENDPOINT = Endpoint(
    id="end1",
    network="net1",
    owner="i" * 64,
    interface="eth0",
    host_interface="veth1",
    mac="02:00:00:00:00:01",
    address="10.0.0.2",
    prefix=24,
    gateway="10.0.0.1",
)


def instance(**changes: object) -> Instance:
    fields = {
        "id": "i" * 64,
        "config": InstanceConfig(
            name="one",
            image="box",
            env=("A=mine",),
            labels={"both": "mine"},
            ports=(PortMapping(container_port=80, host_port=8080),),
        ),
        "state": State(name="running", pid=7, started_at="2026-01-01T11:55:00.000000000Z"),
        "created": "2026-01-01T11:54:00.000000000Z",
        "image": IMAGE,
        "endpoints": (ENDPOINT,),
        "published": (
            Published(owner="i", host_ip="", host_port=8080, container_port=80, protocol="tcp", address="10.0.0.2"),
        ),
        "log_path": "/data/i/log",
    }
    return Instance(**{**fields, **changes})  # type: ignore[arg-type]


# --- versions, routes, filters ----------------------------------------------------------------------------------


def test_versions() -> None:
    assert split("/v1.41/containers/json") == ((1, 41), "/containers/json")
    assert split("/containers/json") == ((1, 51), "/containers/json")
    assert split("/volumes") == ((1, 51), "/volumes")
    for path, text in (
        ("/v1.52/info", "too new. Maximum supported API version is 1.51"),
        ("/v1.23/info", "1.23 is too old"),
    ):
        with pytest.raises(errors.Invalid, match=text):
            split(path)


def test_every_route_is_found() -> None:
    routes = [route for noun in app.NOUNS for route in noun.ROUTES]
    table = Table(routes)
    for route in routes:
        path = (
            route.path.replace("{name*}", "a/b")
            .replace("{rest*}", "x/y")
            .replace("{id}", "c1")
            .replace("{name}", "n")
            .replace("{alias}", "a")
        )
        assert table.find(route.method, path)[0] is route, route
    assert len({(route.method, route.path) for route in routes}) == len(routes)
    found, params = table.find("GET", "/images/host:5000/a/json/json")
    assert params == {"name": "host:5000/a/json"} and found.path == "/images/{name*}/json"
    for method, path in (("POST", "/containers/c1/json"), ("GET", "/containers//json"), ("GET", "/")):
        with pytest.raises(errors.NotFound, match="page not found"):
            table.find(method, path)


def test_filters_in_both_forms() -> None:
    for text in ('{"label": ["a=b", "c"]}', '{"label": {"a=b": true, "c": true, "d": false}}'):
        filters = parse(text, ("label",))
        assert filters.get("label") == ("a=b", "c")
        assert filters.labels({"a": "b", "c": ""}) and not filters.labels({"a": "x", "c": ""})
    assert not parse("", ())
    for text, sentence_ in (
        ('{"x": ["y"]}', "invalid filter 'x'"),
        ("[", "invalid filter"),
        ('{"label": "a"}', "invalid filter"),
    ):
        with pytest.raises(errors.Invalid, match=sentence_):
            parse(text, ("label",))


def test_filtering_of_containers() -> None:
    networks = {"net1": BRIDGE}
    dead = instance(
        id="d" * 64,
        config=InstanceConfig(name="two"),
        state=State(name="exited", exit_code=3),
        image=None,
        endpoints=(),
    )

    def names(text: str, *, everything: bool = True) -> list[str]:
        known = (
            "name",
            "status",
            "exited",
            "ancestor",
            "label",
            "network",
            "publish",
            "expose",
            "id",
            "volume",
            "before",
        )
        chosen = choose([instance(), dead], parse(text, known), networks, everything=everything)
        return [each.config.name for each in chosen]

    assert names("", everything=False) == ["one"]
    assert names('{"name": ["^/two$"]}') == ["two"]
    assert names('{"exited": ["3"]}') == ["two"]
    assert names('{"ancestor": ["box"]}') == names('{"ancestor": ["aaaaaaaaaaaa"]}') == ["one"]
    assert names('{"label": ["from=image", "both=mine"]}') == ["one"]
    assert names('{"network": ["bridge"]}') == ["one", "two"]
    assert names('{"publish": ["80"]}') == names('{"publish": ["79-85/tcp"]}') == ["one"]
    assert names('{"expose": ["81/tcp"]}') == ["one"]
    assert names('{"id": ["dd"]}') == ["two"]
    with pytest.raises(errors.NotFound):
        names('{"before": ["nobody"]}')


@pytest.mark.parametrize("text", ["(a+)+$", "(a|a)*b", "a*a*a*a*a*b", "(?P<x>a)", r"(a)\1", "x" * 300, "["])
def test_patterns_that_could_take_for_ever_are_refused(text: str) -> None:
    with pytest.raises(errors.Invalid):
        compile_pattern(text)


def test_moments() -> None:
    assert moment_of("100.5").timestamp() == 100.5
    assert moment_of("2026-01-01T00:00:00Z") == datetime(2026, 1, 1, tzinfo=UTC)
    assert abs((datetime.now(UTC) - moment_of("1h30m")).total_seconds() - 5400) < 5
    assert moment_ns("1700000000.000000001") == 1_700_000_000_000_000_001
    assert moment_ns("") is None
    for text in ("x", "1e400", "99999999999999999999", "1x"):
        with pytest.raises(errors.Invalid):
            moment_of(text)


# --- streams ----------------------------------------------------------------------------------------------------


def test_frames() -> None:
    assert frame(Channel.STDOUT, b"hello") == b"\x01\0\0\0\0\0\0\x05hello"
    assert frame(Channel.STDERR, b"x" * 300)[:8] == b"\x02\0\0\0\0\0\x01\x2c"


def test_detach_keys_are_read() -> None:
    assert parse_detach_keys("") == b"\x10\x11"
    assert parse_detach_keys("ctrl-a,x,CTRL-[") == b"\x01x\x1b"
    for text in ("ctrl-", "ctrl-1", "ab", "é"):
        with pytest.raises(errors.Invalid, match="Invalid detach keys"):
            parse_detach_keys(text)


def test_detach_keys_across_pieces() -> None:
    keys = DetachKeys(b"\x10\x11")
    assert keys.feed(b"abc\x10") == (b"abc", False)
    assert keys.feed(b"x\x10\x10") == (b"\x10x\x10", False)
    assert keys.feed(b"\x11rest") == (b"", True)


@given(
    st.lists(st.binary(max_size=8).map(lambda data: bytes(b"ab"[byte % 2] for byte in data))),
    st.sampled_from([b"ab", b"aab", b"aba"]),
)
def test_detach_keys_lose_nothing(pieces: list[bytes], sequence: bytes) -> None:
    keys, passed, detached = DetachKeys(sequence), b"", False
    for piece in pieces:
        out, detached = keys.feed(piece)
        passed += out
        if detached:
            break
    whole = b"".join(pieces)
    assert detached == (sequence in whole)
    if detached:
        assert passed == whole[: whole.index(sequence)]
    else:
        assert whole.startswith(passed) and len(whole) - len(passed) < len(sequence)


def test_times_stand_only_before_lines() -> None:
    shaper = LineShaper(stamped=True, framed=False)
    pieces = [
        LogLine(time="T1", channel=Channel.STDOUT, data=b"half ", partial=True),
        LogLine(time="T2", channel=Channel.STDERR, data=b"other\n"),
        LogLine(time="T3", channel=Channel.STDOUT, data=b"whole\n"),
        LogLine(time="", channel=Channel.STDOUT, data=b"raw\n"),
    ]
    assert [shaper.shape(piece) for piece in pieces] == [b"T1 half ", b"T2 other\n", b"whole\n", b"raw\n"]


# --- what is shown ----------------------------------------------------------------------------------------------


def test_inspect() -> None:
    words = inspect_words(instance(), {"net1": BRIDGE})
    assert (words["Path"], words["Args"], words["Name"]) == ("sh", [], "/one")
    assert words["Config"]["Env"] == ["A=mine", "PATH=/bin"]
    assert words["Config"]["Labels"] == {"from": "image", "both": "mine"}
    assert (words["Config"]["User"], words["Config"]["WorkingDir"], words["Config"]["Hostname"]) == (
        "5",
        "/w",
        "i" * 12,
    )
    assert words["Config"]["ExposedPorts"] == {"81/tcp": {}}
    assert words["NetworkSettings"]["Ports"] == {"81/tcp": None, "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}
    assert (
        words["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        == words["NetworkSettings"]["IPAddress"]
        == "10.0.0.2"
    )
    assert words["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}
    assert (words["HostConfig"]["NetworkMode"], words["HostConfig"]["Runtime"]) == ("bridge", "runc")
    assert words["State"]["Running"] and words["State"]["FinishedAt"] == "0001-01-01T00:00:00Z"


def test_inspect_of_an_instance_that_another_door_made() -> None:
    config = InstanceConfig(name="k", driver="vm", owner="kube", network_mode="sandbox:s1")
    words = inspect_words(instance(config=config, image=None, endpoints=(), published=()), {})
    assert (words["HostConfig"]["Runtime"], words["HostConfig"]["NetworkMode"]) == ("vm", "sandbox:s1")
    assert words["NetworkSettings"]["Networks"] == {} and words["Path"] == "" and words["Image"] == ""
    row = summary_words(instance(config=config, image=None, endpoints=()), {}, NOW)
    assert (row["Image"], row["ImageID"], row["Names"]) == ("vm", "", ["/k"])


def test_mounts_are_shown_without_plain_tmpfs() -> None:
    mounts = (
        ResolvedMount(config=MountConfig(kind="volume", target="/v"), source="/vols/a", volume="a"),
        ResolvedMount(config=MountConfig(kind="bind", source="/s", target="/b", readonly=True), source="/s"),
        ResolvedMount(config=MountConfig(kind="tmpfs", target="/t"), source=""),
    )
    extra = {
        "docker": {
            "Config": {},
            "HostConfig": {"Tmpfs": {"/t/": ""}, "Binds": ["a:/v", "/s:/b:ro"]},
            "NetworkingConfig": {},
        }
    }
    words = inspect_words(instance(config=InstanceConfig(name="x", extra=extra), mounts=mounts), {})
    assert words["Mounts"] == [
        {
            "Type": "volume", "Name": "a", "Source": "/vols/a", "Destination": "/v", "Driver": "local", "Mode": "z",
            "RW": True, "Propagation": "",
        },
        {"Type": "bind", "Source": "/s", "Destination": "/b", "Mode": "ro", "RW": False, "Propagation": "rprivate"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (119, "About a minute"),
        (120, "2 minutes"), (3599, "59 minutes"), (3600, "About an hour"), (7200, "2 hours"), (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"), (14 * 86400, "2 weeks"), (60 * 86400, "2 months"), (800 * 86400, "2 years"),
        (-5, "Less than a second"),
    ],
)  # fmt: skip
def test_ages(seconds: int, text: str) -> None:
    moment = (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.000000000Z")
    assert ago(moment, NOW) == text


def test_status_texts() -> None:
    moment = "2026-01-01T11:55:00Z"
    assert status_text(State(name="running", started_at=moment), NOW) == "Up 5 minutes"
    assert status_text(State(name="paused", started_at=moment), NOW) == "Up 5 minutes (Paused)"
    assert (
        status_text(State(name="running", started_at=moment, health="starting"), NOW)
        == "Up 5 minutes (health: starting)"
    )
    assert status_text(State(name="exited", exit_code=3, finished_at=moment), NOW) == "Exited (3) 5 minutes ago"
    assert status_text(State(name="restarting", exit_code=1, finished_at=moment), NOW) == "Restarting (1) 5 minutes ago"
    assert status_text(State(name="created"), NOW) == "Created"


def test_events() -> None:
    event = Event(
        type="container",
        action="exec_start: ls",
        id="c" * 64,
        attributes={"name": "one", "image": "box", "l": "v"},
        time_ns=5_000_000_001,
    )
    words = event_words(event)
    assert (words["status"], words["id"], words["from"]) == ("exec_start: ls", "c" * 64, "box")
    assert (words["time"], words["timeNano"], words["scope"]) == (5, 5_000_000_001, "local")
    known = ("type", "event", "container", "image", "label", "network", "scope", "node")
    for text, shown in (
        ('{"event": ["exec_start"]}', True), ('{"event": ["exec"]}', False), ('{"container": ["one"]}', True),
        ('{"container": ["cccc"]}', True), ('{"container": ["two"]}', False), ('{"type": ["image"]}', False),
        ('{"image": ["box"]}', True), ('{"label": ["l=v"]}', True), ('{"label": ["l=w"]}', False), ('{"network": ["x"]}', False),
        ('{"node": ["x"]}', False), ('{"scope": ["local"]}', True),
    ):  # fmt: skip
        assert passes(event, parse(text, known)) is shown, text


def test_stats_give_the_cli_what_it_divides() -> None:
    assert system_cpu_ns("cpu  1 2 3 4 5 6 7 8 100 100\ncpu0 ...") == 36 * 10_000_000
    first = cpu_words(Stats(cpu_total_ns=100), 1000, 2)
    words = stats_words(
        instance(), Stats(cpu_total_ns=200, memory_bytes=5), cpu_words(Stats(cpu_total_ns=200), 2000, 2),
        read="now", networks={}, previous=("before", first),
    )  # fmt: skip
    assert words["precpu_stats"]["cpu_usage"]["total_usage"] == 100 and words["cpu_stats"]["online_cpus"] == 2
    assert words["preread"] == "before" and words["memory_stats"]["limit"] > 1 << 28


def test_small_things() -> None:
    assert parse_ps("UID PID CMD\nroot 7 sleep 1 2\nroot 8 x\n", {7}) == {
        "Titles": ["UID", "PID", "CMD"],
        "Processes": [["root", "7", "sleep 1 2"]],
    }
    with pytest.raises(errors.Invalid, match="Couldn't find PID field"):
        parse_ps("CMD\nx\n", {1})
    hosts = [("/etc", 0), ("/etc/hosts", 1), ("/etc/resolv.conf", 1), ("/new", 1)]
    assert without_host_files(hosts) == [("/new", 1)]
    assert without_host_files([*hosts, ("/etc/x", 1)]) == [("/etc", 0), ("/new", 1), ("/etc/x", 1)]
    assert stat_header(PathStat(name="a", size=1, mode=420, mtime="t")).startswith("eyJuYW1lIjoiYSIs")
    assert [name_of("a", ""), name_of("a", "b"), name_of("a", "sha256:x"), name_of("", "b")] == [
        "a",
        "a:b",
        "a@sha256:x",
        "",
    ]


def test_image_words() -> None:
    assert (
        pattern_matches("bus*", "busybox:latest")
        and pattern_matches("a/*:1", "a/b:1")
        and not pattern_matches("*", "a/b:1")
    )
    assert bar(50, 100) == "[=========================>                        ]     50B/100B"
    assert bar(100, 100).startswith("[" + "=" * 50 + "]")
    words = progress_words(Progress(status="Downloading", id="abc", current=1, total=2))
    assert (words["progressDetail"], words["id"]) == ({"current": 1, "total": 2}, "abc")
    assert progress_words(Progress(status="Digest: x")) == {"status": "Digest: x"}
    assert auth_of("eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InAifQ") == Auth(username="u", password="p")
    assert auth_of("e30=") is None and auth_of("") is None


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (errors.Invalid("x"), 400), (errors.TooLarge("x"), 413), (errors.NotFound("x"), 404), (errors.Conflict("x"), 409),
        (errors.AlreadyExists("x"), 409), (errors.Forbidden("x"), 403), (errors.Unauthorized("x"), 401),
        (errors.Unsupported("x"), 501), (errors.Unavailable("x"), 503), (errors.DeadlineExceeded("x"), 504),
        (errors.HostFault("x"), 500), (errors.HostFault("x", code=127), 400), (ValueError("x"), 500),
    ],
)  # fmt: skip
def test_statuses(fault: Exception, status: int) -> None:
    assert status_of(fault) == status


def test_sentences_never_show_the_unforeseen() -> None:
    assert sentence(errors.Invalid("Wrong", hint="do right")) == "Wrong (do right)"
    assert "internal error" in sentence(KeyError("secret")) and "secret" not in sentence(KeyError("secret"))
    assert sentence(FileNotFoundError(2, "No such file or directory", "/x")) == "No such file or directory: /x"
    group = ExceptionGroup("two", [errors.Conflict("a"), errors.NotFound("b")])
    assert sentence(group) == "a; b"
