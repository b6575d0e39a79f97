"""kubectl 1.37 against a real door: what people type every day."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from door.kube_support import KUBECTL, Cluster, cluster
from insula.store.memory import MemoryStore
from insula.store.sqlite import SqliteStore

# every kubectl is a vfork that holds this process until the child runs: on a busy machine that is no fault of the loop
pytestmark = pytest.mark.may_block


@pytest.fixture(params=["memory", "sqlite"])
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    store = MemoryStore() if request.param == "memory" else await SqliteStore.open(tmp_path / "state.db")
    async with cluster(tmp_path, store=store) as made:
        yield made


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as made:
        yield made


def deployment(name: str = "web", image: str = "nginx:1", replicas: int | None = 2, **spec: Any) -> dict[str, Any]:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": image}]}}
    body = {"selector": {"matchLabels": labels}, "template": template, **spec}
    if replicas is not None:
        body["replicas"] = replicas
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": body}


def config(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def test_create_get_patch_scale_delete(door: Cluster) -> None:
    await door.kubectl("create", "deployment", "web", "--image=nginx", "--replicas=3")  # protobuf
    table = await door.kubectl("get", "deploy", "-o", "wide")
    assert table.out.split("\n")[0].split() == [
        "NAME",
        "READY",
        "UP-TO-DATE",
        "AVAILABLE",
        "AGE",
        "CONTAINERS",
        "IMAGES",
        "SELECTOR",
    ]
    assert table.out.split("\n")[1].split()[:2] == ["web", "0/3"]
    await door.kubectl(
        "patch", "deploy", "web", "-p", '{"spec":{"template":{"spec":{"containers":[{"name":"nginx","tty":true}]}}}}'
    )
    got = (await door.kubectl("get", "deploy", "web", "-o", "json")).json
    assert got["spec"]["template"]["spec"]["containers"][0]["image"] == "nginx"
    assert got["spec"]["template"]["spec"]["containers"][0]["tty"] is True
    assert got["metadata"]["generation"] == 2
    await door.kubectl(
        "patch",
        "deploy",
        "web",
        "--type=json",
        "-p",
        '[{"op":"replace","path":"/spec/paused","value":true}]',
        check=False,
    )
    await door.kubectl("patch", "deploy", "web", "--type=merge", "-p", '{"spec":{"minReadySeconds":3}}')
    await door.kubectl("scale", "deploy", "web", "--replicas=5")
    await door.kubectl("scale", "deploy", "web", "--replicas=4", "--current-replicas=5")  # PUT without a Content-Type
    mismatch = await door.kubectl("scale", "deploy", "web", "--replicas=1", "--current-replicas=9", check=False)
    assert mismatch.code == 1 and "Expected replicas to be 9, was 4" in mismatch.err
    for command in (
        ("label", "deploy", "web", "tier=front"),
        ("annotate", "deploy", "web", "note=x"),
        ("set", "image", "deploy/web", "nginx=nginx:2"),
        ("rollout", "restart", "deploy/web"),
    ):
        await door.kubectl(*command)
    got = (await door.kubectl("get", "deploy", "web", "-o", "json")).json
    assert (got["spec"]["replicas"], got["spec"]["minReadySeconds"]) == (4, 3)
    assert got["metadata"]["labels"]["tier"] == "front"
    assert (await door.kubectl("delete", "deploy", "web")).out.startswith('deployment.apps "web" deleted')
    gone = await door.kubectl("get", "deploy", "web", check=False)
    assert gone.err.strip() == 'Error from server (NotFound): deployments.apps "web" not found'


async def test_apply_merges_three_ways(quick: Cluster) -> None:
    await quick.apply(deployment(replicas=None), config("c", a="1", b="2"))
    await quick.kubectl("scale", "deploy", "web", "--replicas=7")
    again = await quick.apply(deployment(image="nginx:2", replicas=None), config("c", a="1", c="3"))
    assert "deployment.apps/web configured" in again.out
    assert (await quick.kubectl("get", "deploy", "web", "-o", "json")).json["spec"]["replicas"] == 7
    assert (await quick.kubectl("get", "cm", "c", "-o", "json")).json["data"] == {"a": "1", "c": "3"}
    assert "configmap/c unchanged" in (await quick.apply(config("c", a="1", c="3"))).out


async def test_server_side_apply_reports_conflicts(quick: Cluster) -> None:
    import yaml

    await quick.kubectl("apply", "--server-side", "--field-manager=one", "-f", "-", stdin=yaml.safe_dump(deployment()))
    other = yaml.safe_dump(deployment(replicas=9))
    refused = await quick.kubectl("apply", "--server-side", "--field-manager=two", "-f", "-", stdin=other, check=False)
    assert refused.code == 1
    assert 'conflict with "one": .spec.replicas' in refused.err
    await quick.kubectl("apply", "--server-side", "--field-manager=two", "--force-conflicts", "-f", "-", stdin=other)
    got = (await quick.kubectl("get", "deploy", "web", "-o", "json", "--show-managed-fields")).json
    assert got["spec"]["replicas"] == 9
    assert {each["manager"] for each in got["metadata"]["managedFields"]} == {"one", "two"}


async def test_unknown_fields_and_wrong_types_are_told(quick: Cluster) -> None:
    bad = deployment()
    bad["spec"]["template"]["spec"]["containers"][0]["imag"] = "x"
    told = await quick.kubectl("create", "-f", "-", stdin=bad, check=False)
    assert 'strict decoding error: unknown field "spec.template.spec.containers[0].imag"' in told.err
    warned = await quick.kubectl("create", "--validate=warn", "-f", "-", stdin=bad)
    assert 'Warning: unknown field "spec.template.spec.containers[0].imag"' in warned.err
    wrong = deployment("other")
    wrong["spec"]["replicas"] = "many"
    told = await quick.kubectl("create", "-f", "-", stdin=wrong, check=False)
    assert "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32" in told.err
    empty = deployment("third")
    empty["spec"]["template"]["spec"]["containers"] = []
    told = await quick.kubectl("create", "-f", "-", stdin=empty, check=False)
    assert 'The Deployment "third" is invalid: spec.template.spec.containers: Required value' in told.err


async def test_replace_edit_diff_and_dry_run(quick: Cluster) -> None:
    await quick.apply(config("c", a="1"))
    await quick.kubectl("replace", "-f", "-", stdin=config("c", a="2"))
    different = await quick.kubectl("diff", "-f", "-", stdin=config("c", a="3"), check=False)
    assert different.code == 1 and '+  a: "3"' in different.out
    await quick.kubectl("apply", "--dry-run=server", "-f", "-", stdin=config("c", a="4"))
    assert (await quick.kubectl("get", "cm", "c", "-o", "jsonpath={.data.a}")).out == "2"
    editor = quick.folder / "editor"
    editor.write_text('#!/bin/sh\nsed -i \'s/a: "2"/a: "5"/\' "$1"\n')
    editor.chmod(0o755)
    quick.env["KUBE_EDITOR"] = str(editor)
    await quick.kubectl("edit", "cm", "c")
    assert (await quick.kubectl("get", "cm", "c", "-o", "jsonpath={.data.a}")).out == "5"


async def test_what_there_is(quick: Cluster) -> None:
    resources = (await quick.kubectl("api-resources", "-o", "name")).out.split()
    assert len(resources) > 70 and {"pods", "deployments.apps", "leases.coordination.k8s.io"} <= set(resources)
    versions = (await quick.kubectl("api-versions")).out.split()
    assert {"v1", "apps/v1", "resource.k8s.io/v1beta1"} <= set(versions)
    explained = (await quick.kubectl("explain", "pod.spec.containers.livenessProbe.httpGet")).out
    assert "path" in explained and "FIELDS:" in explained
    assert "selector" in (await quick.kubectl("explain", "deployments.spec", "--recursive")).out
    version = (await quick.kubectl("version", "-o", "json")).json
    assert version["serverVersion"]["gitVersion"].startswith("v1.37.")
    assert (await quick.kubectl("get", "--raw", "/readyz?verbose")).out.endswith("readyz check passed\n")
    assert "is running at" in (await quick.kubectl("cluster-info")).out


async def test_get_all_and_selectors(quick: Cluster) -> None:
    await quick.apply(deployment(), config("c", a="1"))
    await quick.kubectl("run", "p", "--image=busybox", "--labels=app=x")
    assert "pod/p" in (await quick.kubectl("get", "all")).out
    assert (await quick.kubectl("get", "pods", "-l", "app in (x,y)", "-o", "name")).out == "pod/p\n"
    assert (
        await quick.kubectl("get", "pods", "--field-selector", "status.phase=Pending", "-o", "name")
    ).out == "pod/p\n"
    assert (await quick.kubectl("get", "pods", "--field-selector", "spec.nodeName!=", "-o", "name")).out == ""
    bad = await quick.kubectl("get", "pods", "--field-selector", "spec.foo=1", check=False)
    assert "field label not supported: spec.foo" in bad.err
    assert (await quick.kubectl("get", "pods", "-A", "--sort-by=.metadata.name")).out.count("\n") == 2
    assert "QoS Class:        BestEffort" in (await quick.kubectl("describe", "pod", "p")).out


async def test_chunks_and_yaml(quick: Cluster) -> None:
    await quick.apply(*(config(f"c{index:02}", a="1") for index in range(25)))
    names = (await quick.kubectl("get", "cm", "--chunk-size=10", "-o", "name")).out.split()
    assert len(names) == len(set(names)) == 25
    raw = (await quick.kubectl("get", "--raw", "/api/v1/namespaces/default/configmaps?limit=10")).json
    assert raw["metadata"]["remainingItemCount"] == 15 and raw["metadata"]["continue"]


async def test_wait_and_watch(quick: Cluster) -> None:
    await quick.kubectl("run", "p", "--image=busybox")
    waiting = asyncio.create_task(quick.kubectl("wait", "pod/p", "--for=condition=Ready", "--timeout=20s"))
    deleted = asyncio.create_task(quick.kubectl("wait", "pod/p", "--for=delete", "--timeout=20s"))
    await asyncio.sleep(0.5)
    status = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    import json

    await quick.kubectl("patch", "pod", "p", "--subresource=status", "--type=merge", "-p", json.dumps(status))
    assert "condition met" in (await waiting).out
    await quick.kubectl("delete", "pod", "p", "--wait=false")
    await deleted


async def test_get_watch_prints_rows_as_they_come(quick: Cluster) -> None:
    process = await asyncio.create_subprocess_exec(
        KUBECTL, "get", "cm", "-w", "--no-headers", env=quick.env, stdout=asyncio.subprocess.PIPE
    )
    try:
        await asyncio.sleep(0.5)
        await quick.apply(config("seen", a="1"))
        assert process.stdout is not None
        async with asyncio.timeout(10):
            line = await process.stdout.readline()
        assert line.split()[:2] == [b"seen", b"1"]
    finally:
        process.kill()
        await process.wait()


async def test_identity_and_rights(quick: Cluster) -> None:
    who = await quick.kubectl("auth", "whoami")
    assert "kubernetes-admin" in who.out and "system:masters" in who.out
    assert (await quick.kubectl("auth", "can-i", "create", "pods")).out == "yes\n"
    await quick.kubectl("create", "serviceaccount", "bob")
    account = "system:serviceaccount:default:bob"
    no = await quick.kubectl("auth", "can-i", "list", "pods", "--as", account, check=False)
    assert (no.code, no.out) == (1, "no\n")
    token = (await quick.kubectl("create", "token", "bob", "--duration=1h")).out.strip()
    listed = await quick.kubectl(
        "--kubeconfig=/dev/null",
        f"--server={quick.url}",
        f"--certificate-authority={quick.pki.folder}/ca.crt",
        f"--token={token}",
        "get",
        "pods",
        check=False,
    )
    assert listed.err.strip() == (
        f'Error from server (Forbidden): pods is forbidden: User "{account}" cannot list resource "pods" in API group "" in the '
        'namespace "default"'
    )
    await quick.kubectl("create", "role", "reader", "--verb=get,list", "--resource=pods,deployments.apps")
    await quick.kubectl("create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:bob")
    assert (await quick.kubectl("get", "pods,deploy", "--as", account)).code == 0
    assert "pods " in (await quick.kubectl("auth", "can-i", "--list", "--as", account)).out
    short = await quick.kubectl("create", "token", "bob", "--duration=1m", check=False)
    assert "may not specify a duration less than 10 minutes" in short.err


@pytest.mark.parametrize(
    "command",
    [
        "create configmap x --from-literal=a=b",
        "create secret generic x --from-literal=a=b",
        "create secret docker-registry x --docker-username=a --docker-password=b --docker-server=c",
        "create namespace x",
        "create job x --image=busybox -- echo hi",
        "create cronjob x --image=busybox --schedule=@hourly",
        "create quota x --hard=cpu=1,pods=2",
        "create role x --verb=get --resource=pods --resource-name=a",
        "create clusterrole x --verb=get --non-resource-url=/healthz",
        "create clusterrolebinding x --clusterrole=view --user=bob",
        "create serviceaccount x",
        "create poddisruptionbudget x --selector=a=b --min-available=50%",
        "create ingress x --rule=foo.com/bar=svc:8080",
        "create service clusterip x --tcp=80:8080",
        "create service nodeport x --tcp=80",
        "create service externalname x --external-name=example.com",
        "create priorityclass x --value=1000",
    ],
)
async def test_protobuf_commands(quick: Cluster, command: str) -> None:
    words = command.split()
    await quick.kubectl(*words)
    kind = {"docker-registry": "secret", "generic": "secret", "clusterip": "service", "nodeport": "service"}.get(
        words[2], words[1]
    )
    got = (await quick.kubectl("get", kind, "x", "-o", "json")).json
    assert got["metadata"]["name"] == "x"
