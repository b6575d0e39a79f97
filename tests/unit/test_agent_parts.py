"""The agent's pure parts: environment, files, configurations, mirror pods, claims, probes; and volumes on a real disk."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from insula.agent import podimages, podlogs, podspec, podvolumes
from insula.agent.mirror import mirror_of, mirrors, pod_name
from insula.agent.podenv import PodFacts, References, environment, expand
from insula.agent.podfiles import File, config_names, files_of
from insula.agent.probes import Target, Verdict, port_of, watch
from insula.agent.takeover import Claims
from insula.engine.contract import Instance, State
from insula.errors import Conflict, Invalid, NotFound, Unsupported
from insula.model.instance import InstanceConfig, MountConfig, Resources
from insula.model.resource import Resource

MAPS = References({"m": {"A": "1", "b.c": "2", "bad=key": "3"}}, {"s": {"S": b"hush"}})
FACTS = PodFacts(pod_ip="10.0.0.2", host_ip="10.0.0.1", node_cpu=8, node_memory=1 << 30)


def pod(*containers: Resource, **spec: Any) -> Resource:
    """A pod."""
    meta = {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": 'x"y'}, "annotations": {"k": "v"}}
    return {"metadata": meta, "spec": {"containers": list(containers) or [box()], "nodeName": "node", **spec}}


def box(**fields: Any) -> Resource:
    """A container."""
    return {"name": "c", "image": "i", **fields}


def variables(container: Resource, given: dict[str, str] | None = None) -> dict[str, str]:
    """The environment as a mapping."""
    return dict(item.split("=", 1) for item in environment(container, pod(container), MAPS, FACTS, given or {}))


# --- environment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$(NO)", "$(NO)"),
        ("a$b", "a$b"),
        ("$$$(A)", "$1"),
        ("$(A)$(A)", "11"),
        ("$(", "$("),
    ],
)
def test_expansion(text: str, expected: str) -> None:
    assert expand(text, {"A": "1"}) == expected


def test_later_sources_replace_earlier_ones_and_only_what_was_defined_before_is_expanded() -> None:
    made = box(
        envFrom=[
            {"configMapRef": {"name": "m"}},
            {"secretRef": {"name": "s"}, "prefix": "P_"},
            {"configMapRef": {"name": "no", "optional": True}},
        ],
        env=[{"name": "A", "value": "own"}, {"name": "X", "value": "$(A) $(Y) $(HOST)"}, {"name": "Y", "value": "y"}],
    )
    found = variables(made, {"HOST": "h", "A": "service"})
    assert found == {"HOST": "h", "A": "own", "b.c": "2", "P_S": "hush", "X": "own $(Y) h", "Y": "y"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "n"),
        ("metadata.uid", "u"),
        ("metadata.labels['b']", "2"),
        ("metadata.labels['no']", ""),
        ("metadata.labels", 'a="x\\"y"\nb="2"'),
        ("metadata.annotations['k']", "v"),
        ("spec.nodeName", "node"),
        ("spec.serviceAccountName", "default"),
        ("status.podIP", "10.0.0.2"),
        ("status.hostIP", "10.0.0.1"),
    ],
)
def test_fields_of_the_downward_api(path: str, expected: str) -> None:
    assert variables(box(env=[{"name": "F", "valueFrom": {"fieldRef": {"fieldPath": path}}}]))["F"] == expected


@pytest.mark.parametrize(
    ("resource", "divisor", "expected"),
    [
        ("limits.cpu", "1m", "1500"),
        ("limits.cpu", "1", "2"),
        ("requests.memory", "1Mi", "64"),
        ("limits.memory", "1", str(1 << 30)),
        ("requests.cpu", None, "0"),
    ],
)
def test_amounts_round_up_and_missing_limits_are_the_nodes(resource: str, divisor: str | None, expected: str) -> None:
    reference = {"resource": resource, **({"divisor": divisor} if divisor else {})}
    made = box(
        resources={"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}},
        env=[{"name": "R", "valueFrom": {"resourceFieldRef": reference}}],
    )
    assert variables(made)["R"] == expected


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ({"configMapKeyRef": {"name": "no", "key": "A"}}, NotFound),
        ({"configMapKeyRef": {"name": "m", "key": "no"}}, Invalid),
        ({"secretKeyRef": {"name": "no", "key": "A"}}, NotFound),
        ({"fieldRef": {"fieldPath": "spec.secret"}}, Invalid),
        ({"fileKeyRef": {}}, Invalid),
    ],
)
def test_what_cannot_be_resolved_is_said(source: Resource, fault: type[Exception]) -> None:
    with pytest.raises(fault):
        variables(box(env=[{"name": "F", "valueFrom": source}]))


# --- files ------------------------------------------------------------------------------------------------------


def files(volume: Resource) -> dict[str, File]:
    """The files of a volume `v`."""
    return files_of({"name": "v", **volume}, pod(), MAPS, {"v/token": "secret"}, FACTS)


def test_files_of_every_written_volume() -> None:
    assert files({"secret": {"secretName": "s", "defaultMode": 0o400}}) == {"S": File(b"hush", 0o400)}
    chosen = {"name": "m", "items": [{"key": "A", "path": "d/f", "mode": 0o600}]}
    assert files({"configMap": chosen}) == {"d/f": File(b"1", 0o600)}
    assert files({"configMap": {"name": "no", "optional": True}}) == {}
    fields = {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}
    assert files({"downwardAPI": fields}) == {"name": File(b"p", 0o644)}
    sources = [{"secret": {"name": "s"}}, {"serviceAccountToken": {"path": "token"}}]
    assert files({"projected": {"sources": sources, "defaultMode": 0o640}}) == {
        "S": File(b"hush", 0o640),
        "token": File(b"secret", 0o640),
    }


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "..x", ".", ""])
def test_no_file_leaves_its_volume(path: str) -> None:
    with pytest.raises(Invalid):
        files({"configMap": {"name": "m", "items": [{"key": "A", "path": path}]}})


def test_every_reference_of_a_pod_is_found() -> None:
    inner = box(
        env=[{"name": "x", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}}],
        envFrom=[{"configMapRef": {"name": "m2"}}],
    )
    volumes = [
        {"name": "a", "configMap": {"name": "m1"}},
        {"name": "b", "projected": {"sources": [{"secret": {"name": "s1"}}]}},
    ]
    wish = pod(box(), initContainers=[inner], volumes=volumes)
    assert config_names(wish) == {("configmaps", "m1"), ("configmaps", "m2"), ("secrets", "s1"), ("secrets", "s2")}


def test_written_files_are_exchanged_at_once_and_old_ones_go(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    podvolumes.write_files(folder, {"a": File(b"1"), "d/x": File(b"2", 0o400)}, None)
    assert (folder / "a").read_bytes() == b"1" and stat.S_IMODE((folder / "d/x").stat().st_mode) == 0o400
    before = os.readlink(folder / "..data")
    podvolumes.write_files(folder, {"a": File(b"1"), "d/x": File(b"2", 0o400)}, None)
    assert os.readlink(folder / "..data") == before, "the same is not written again"
    podvolumes.write_files(folder, {"a": File(b"3")}, None)
    assert (folder / "a").read_bytes() == b"3" and not (folder / "d").exists()
    assert sorted(p.name for p in folder.iterdir()) == sorted([os.readlink(folder / "..data"), "..data", "a"])


@pytest.mark.root
def test_a_subpath_stays_inside_of_its_volume_whatever_its_links_say(tmp_path: Path) -> None:
    volume, base = tmp_path / "volume", tmp_path / "base"
    (volume / "in").mkdir(parents=True)
    (volume / "file").write_text("x")
    (tmp_path / "secret").write_text("hush")
    (volume / "out").symlink_to("/")
    (volume / "up").symlink_to("../secret")
    source = MountConfig(kind="bind", source=str(volume), target="")
    try:
        assert Path(podvolumes.subpath(base, source, "file", "f")).read_text() == "x"
        outside = Path(podvolumes.subpath(base, source, "out", "o"))
        assert sorted(p.name for p in outside.iterdir()) == sorted(p.name for p in volume.iterdir())
        with pytest.raises(OSError):
            podvolumes.subpath(base, source, "up", "u")
        assert Path(podvolumes.subpath(base, source, "new/deep", "n")).is_dir() and (volume / "new/deep").is_dir()
        with pytest.raises(Invalid):
            podvolumes.subpath(base, source, "../secret", "s")
    finally:
        asyncio.run(podvolumes.remove(base))
    assert not base.exists() and (volume / "file").exists()


# --- configurations ---------------------------------------------------------------------------------------------


def configured(container: Resource, **spec: Any) -> InstanceConfig:
    """An InstanceConfig."""
    around = podspec.Surroundings(
        attempt=2,
        env=("WHO=me",),
        mounts={"v": MountConfig(kind="bind", source="/vol", target="")},
        subpaths={("v", "me"): "/vol-me"},
        termination_log="/log",
        node_memory=1 << 30,
    )
    return podspec.instance_of(pod(container, **spec), container, around)


def test_a_container_in_the_engines_words() -> None:
    mounts = [
        {"name": "v", "mountPath": "/all", "readOnly": True},
        {"name": "v", "mountPath": "/part", "subPathExpr": "$(WHO)"},
    ]
    context = {"runAsUser": 5, "capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": False}
    resources = {"requests": {"cpu": "100m"}, "limits": {"cpu": "500m", "memory": "64Mi"}}
    made = configured(
        box(
            command=["run", "$(WHO)"],
            args=["a"],
            volumeMounts=mounts,
            securityContext=context,
            resources=resources,
            workingDir="/w",
        ),
        securityContext={"runAsUser": 1, "runAsGroup": 6, "fsGroup": 7, "supplementalGroups": [8]},
        hostAliases=[{"ip": "1.2.3.4", "hostnames": ["h"]}],
        dnsConfig={
            "nameservers": ["9.9.9.9"],
            "searches": ["s"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}],
        },
    )
    assert made.name == "k8s_c_p_n_u_2" and made.network_mode == "sandbox:pod-u" and made.owner == "kube"
    assert (made.entrypoint, made.command, made.working_dir) == (("run", "me"), ("a",), "/w")
    assert (made.user, made.groups) == ("5:6", ("8", "7"))
    assert [(m.source, m.target, m.readonly) for m in made.mounts] == [
        ("/vol", "/all", True),
        ("/vol-me", "/part", False),
        ("/log", "/dev/termination-log", False),
    ]
    assert made.resources == Resources(
        cpu_shares=102, cpu_quota_us=50_000, cpu_period_us=100_000, memory_bytes=64 << 20, memory_swap_bytes=64 << 20
    )
    assert made.security.cap_drop == ("ALL",) and made.security.no_new_privileges
    assert made.extra_hosts == ("h:1.2.3.4",)
    assert (made.dns, made.dns_search, made.dns_options) == (("9.9.9.9",), ("s",), ("ndots:2", "rotate"))


def test_command_and_arguments_replace_what_the_image_has() -> None:
    assert (configured(box()).entrypoint, configured(box()).command) == (None, None)
    assert (configured(box(args=["a"])).entrypoint, configured(box(args=["a"])).command) == (None, ("a",))
    assert (configured(box(command=["x"])).entrypoint, configured(box(command=["x"])).command) == (("x",), ())


@pytest.mark.parametrize(
    ("resources", "score"),
    [
        ({}, 1000),
        ({"requests": {"memory": "512Mi"}}, 500),
        ({"requests": {"memory": "1Ki"}}, 999),
        ({"requests": {"memory": "2Gi"}}, 2),
        ({"limits": {"cpu": "1", "memory": "64Mi"}}, 0),
    ],
)
def test_who_is_killed_first_when_memory_runs_out(resources: Resource, score: int) -> None:
    assert configured(box(resources=resources)).oom_score_adj == score


@pytest.mark.parametrize(
    ("container", "spec", "word"),
    [
        (box(volumeDevices=[{"name": "v"}]), {}, "volumeDevices"),
        (box(), {"hostUsers": False}, "hostUsers"),
        (box(), {"shareProcessNamespace": True}, "shareProcessNamespace"),
        (box(), {"os": {"name": "windows"}}, "windows"),
        (box(livenessProbe={"grpc": {"port": 1, "mode": "TLS"}}), {}, "grpc.mode"),
        (box(securityContext={"seccompProfile": {"type": "Localhost"}}), {}, "Localhost"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(container: Resource, spec: Resource, word: str) -> None:
    with pytest.raises(Unsupported, match=word):
        configured(container, **spec)


@pytest.mark.parametrize(
    ("context", "user", "fits"),
    [
        ({}, "", True),
        ({"runAsNonRoot": True}, "", False),
        ({"runAsNonRoot": True}, "0:0", False),
        ({"runAsNonRoot": True}, "1000", True),
        ({"runAsNonRoot": True}, "www", False),
        ({"runAsNonRoot": True, "runAsUser": 5}, "", True),
        ({"runAsNonRoot": True, "runAsUser": 0}, "5", False),
    ],
)
def test_non_root_is_checked(context: Resource, user: str, fits: bool) -> None:
    wish = pod(box(securityContext=context))
    if fits:
        podspec.check_non_root(wish["spec"], wish["spec"]["containers"][0], user)
    else:
        with pytest.raises(Invalid):
            podspec.check_non_root(wish["spec"], wish["spec"]["containers"][0], user)


# --- images, logs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("busybox", "Always"),
        ("busybox:latest", "Always"),
        ("busybox:1", "IfNotPresent"),
        ("h:5000/b", "Always"),
        ("b@sha256:00", "IfNotPresent"),
    ],
)
def test_the_default_pull_policy(image: str, policy: str) -> None:
    assert podimages.default_policy(image) == policy


def test_credentials_are_found_by_registry() -> None:
    entries = {"reg.example:5000": {"auth": "dTpw"}, "https://index.docker.io/v1/": {"username": "d", "password": "e"}}
    found = podimages.auth_for("reg.example:5000/a/b:1", entries)
    assert found is not None and (found.username, found.password) == ("u", "p")
    hub = podimages.auth_for("busybox", entries)
    assert hub is not None and hub.username == "d"
    assert podimages.auth_for("other.example/a", entries) is None


@pytest.mark.parametrize(
    "query",
    [{"tailLines": "-1"}, {"tailLines": "x"}, {"limitBytes": "0"}, {"sinceSeconds": "0"}, {"sinceTime": "yesterday"}],
)
def test_wrong_log_options_are_refused(query: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        podlogs.options_of(query)


# --- mirror pods ------------------------------------------------------------------------------------------------


def docker_instance(name: str = "web", state: str = "running", owner: str = "docker", **fields: Any) -> Instance:
    """What `docker run` made."""
    config = InstanceConfig(
        name=name,
        image="busybox",
        owner=owner,
        resources=Resources(memory_bytes=1 << 20, cpu_quota_us=50_000, cpu_period_us=100_000),
    )
    times = {"started_at": "2026-01-01T00:00:00.000000000Z"} | (
        {"finished_at": "2026-01-01T00:00:01.000000000Z"} if state == "exited" else {}
    )
    return Instance(
        id="ab" * 32, config=config, state=State(name=state, **times, **fields), created=times["started_at"]
    )  # type: ignore[arg-type]


def test_a_mirror_shows_what_runs_and_what_it_takes() -> None:
    made = mirror_of(docker_instance(), "node", "10.0.0.1")
    assert (made["metadata"]["name"], made["metadata"]["namespace"], made["status"]["phase"]) == (
        "web-node",
        "docker",
        "Running",
    )
    assert made["spec"]["containers"][0]["resources"]["limits"] == {"memory": str(1 << 20), "cpu": "500m"}


@pytest.mark.parametrize(
    ("state", "code", "phase"),
    [("created", 0, "Pending"), ("paused", 0, "Running"), ("exited", 0, "Succeeded"), ("exited", 1, "Failed")],
)
def test_the_phase_of_a_mirror(state: str, code: int, phase: str) -> None:
    assert mirror_of(docker_instance(state=state, exit_code=code), "node", "")["status"]["phase"] == phase


def test_names_that_are_no_dns_names_stay_apart() -> None:
    assert pod_name(docker_instance("My_App"), "n") == "my-app-abababab-n"
    assert pod_name(docker_instance("my-app"), "n") == "my-app-n"


def test_only_the_agents_own_mirror_is_one() -> None:
    instance = docker_instance()
    made = mirror_of(instance, "node", "")
    assert mirrors(made, instance, "node")
    for field, value in (("namespace", "default"), ("name", "other")):
        assert not mirrors({**made, "metadata": {**made["metadata"], field: value}}, instance, "node")
    assert not mirrors(made, docker_instance(owner="kube"), "node")


# --- claims, probes ---------------------------------------------------------------------------------------------


async def test_a_new_viewer_takes_over_unless_the_old_one_is_kept() -> None:
    claims, told = Claims(), []

    async def view(name: str, *, keep: bool = False) -> None:
        try:
            async with claims.hold("console", keep=keep):
                told.append(name)
                await asyncio.Event().wait()
        finally:
            told.append(f"{name} left")

    first = asyncio.create_task(view("first"))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(view("second"))
    await asyncio.sleep(0.01)
    assert first.cancelled() and told == ["first", "first left", "second"]
    with pytest.raises(Conflict):
        await view("third", keep=True)
    second.cancel()
    await asyncio.wait((second,))


@pytest.mark.looptime
async def test_a_probe_tells_its_first_verdict_and_each_change_by_its_thresholds() -> None:
    answers = iter([None, "x", "x", None, "x", "x", "x", None, None])
    told: list[tuple[float, bool]] = []
    loop = asyncio.get_running_loop()
    began = loop.time()
    probe = {"initialDelaySeconds": 5, "periodSeconds": 2, "failureThreshold": 3, "successThreshold": 1}
    target = Target(docker_instance(), {"readinessProbe": probe}, "")

    async def attempt(_: Resource, __: Target) -> str | None:
        try:
            return next(answers)
        except StopIteration:
            raise asyncio.CancelledError from None

    def report(verdict: Verdict) -> None:
        told.append((loop.time() - began, verdict.healthy))

    with pytest.raises(asyncio.CancelledError):
        await watch("readinessProbe", target, attempt, report)
    assert told == [(5, True), (17, False), (19, True)]


@pytest.mark.looptime
async def test_a_probe_that_hangs_or_breaks_has_failed() -> None:
    told: list[str] = []
    target = Target(docker_instance(), {"livenessProbe": {"timeoutSeconds": 1, "failureThreshold": 1}}, "")

    async def hang(_: Resource, __: Target) -> str | None:
        await asyncio.sleep(1000)
        return None

    async def broken(_: Resource, __: Target) -> str | None:
        raise ValueError("no such port")

    for attempt in (hang, broken):
        task = asyncio.create_task(
            watch("livenessProbe", target, attempt, lambda verdict: told.append(verdict.message))
        )
        await asyncio.sleep(3)
        task.cancel()
        await asyncio.wait((task,))
    assert told == ["probe timed out after 1 s", "no such port"]


def test_ports_of_probes_by_number_and_name() -> None:
    made = box(ports=[{"name": "web", "containerPort": 8080}])
    assert (port_of(80, made), port_of("81", made), port_of("web", made)) == (80, 81, 8080)
    with pytest.raises(OSError, match="no port named"):
        port_of("no", made)
