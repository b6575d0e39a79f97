"""Who may what: certificates, tokens and their ends, roles, aggregation, escalation; and the official Python client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import kubernetes
import pytest
from kubernetes.client.exceptions import ApiException

from door.kube_support import Cluster, cluster
from insula.tasks import in_thread

# every kubectl is a vfork that holds this process until the child runs: on a busy machine that is no fault of the loop
pytestmark = pytest.mark.may_block


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as made:
        yield made


async def _as(door: Cluster, config: Path, *args: str) -> str:
    ran = await door.kubectl("--kubeconfig", str(config), *args, check=False)
    return ran.out + ran.err


async def test_a_certificates_user_has_the_rights_of_its_roles(door: Cluster) -> None:
    ann = door.write_config("ann", "ann", ("devs",))
    assert 'User "ann" cannot list resource "pods"' in await _as(door, ann, "get", "pods")
    await door.kubectl("create", "rolebinding", "devs", "--clusterrole=edit", "--group=devs")
    assert "created" in await _as(door, ann, "create", "configmap", "x")
    assert "No resources found" in await _as(door, ann, "get", "pods")
    assert "cannot list" in await _as(door, ann, "get", "pods", "-n", "kube-system")
    assert "cannot list resource" in await _as(door, ann, "get", "nodes")
    assert "ann" in await _as(door, ann, "auth", "whoami")
    await door.kubectl("delete", "rolebinding", "devs")
    assert "cannot list" in await _as(door, ann, "get", "pods")


async def test_roles_that_name_names_urls_and_aggregate(door: Cluster) -> None:
    await door.kubectl("create", "clusterrole", "one", "--verb=get", "--resource=configmaps", "--resource-name=only")
    await door.kubectl("create", "clusterrole", "metrics", "--verb=get", "--non-resource-url=/metrics*")
    await door.kubectl("create", "clusterrole", "all", "--aggregation-rule=a=b")
    for name in ("one", "metrics"):
        await door.kubectl("label", "clusterrole", name, "a=b")
    await door.kubectl("create", "clusterrolebinding", "all", "--clusterrole=all", "--user=bob")

    async def can(*words: str) -> str:
        return (await door.kubectl("auth", "can-i", "--as=bob", *words, check=False)).out.strip()

    assert await can("get", "configmap/only") == "yes"
    assert await can("get", "configmap/other") == "no"
    assert await can("list", "configmaps") == "no"
    assert await can("get", "/metrics/cadvisor") == "yes"
    assert await can("get", "/logs") == "no"


async def test_nobody_gives_away_what_they_do_not_have(door: Cluster) -> None:
    ann = door.write_config("ann", "ann")
    await door.kubectl("create", "rolebinding", "ann", "--clusterrole=admin", "--user=ann")
    assert "created" in await _as(door, ann, "create", "role", "small", "--verb=get", "--resource=pods")
    told = await _as(door, ann, "create", "role", "big", "--verb=get", "--resource=nodes")
    assert 'roles.rbac.authorization.k8s.io "big" is forbidden' in told
    assert "attempting to grant RBAC permissions not currently held" in told
    told = await _as(door, ann, "create", "rolebinding", "big", "--clusterrole=cluster-admin", "--user=ann")
    assert "attempting to grant RBAC permissions not currently held" in told


async def test_a_token_ends_with_its_account(door: Cluster) -> None:
    await door.kubectl("create", "sa", "bob")
    token = (await door.kubectl("create", "token", "bob")).out.strip()
    user = await door.authority.user_of_token(token)
    assert user.name == "system:serviceaccount:default:bob"
    assert "system:serviceaccounts:default" in user.groups
    await door.kubectl("delete", "sa", "bob")
    await door.kubectl("create", "sa", "bob")
    door.authority.forget_tokens()
    with pytest.raises(Exception, match="Unauthorized"):
        await door.authority.user_of_token(token)


async def test_a_bound_token_ends_with_its_pod(door: Cluster) -> None:
    await door.kubectl("create", "sa", "bob")
    await door.kubectl("run", "p", "--image=x")
    token = (
        await door.kubectl("create", "token", "bob", "--bound-object-kind=Pod", "--bound-object-name=p")
    ).out.strip()
    user = await door.authority.user_of_token(token)
    assert user.extra["authentication.kubernetes.io/pod-name"] == ("p",)
    await door.kubectl("delete", "pod", "p", "--now")
    door.authority.forget_tokens()
    with pytest.raises(Exception, match="Unauthorized"):
        await door.authority.user_of_token(token)


def _python(door: Cluster) -> Any:
    return kubernetes.config.new_client_from_config(config_file=str(door.config))


async def test_the_official_python_client(door: Cluster) -> None:
    def work() -> list[str]:
        with _python(door) as api:
            core, apps = kubernetes.client.CoreV1Api(api), kubernetes.client.AppsV1Api(api)
            core.create_namespaced_config_map("default", {"metadata": {"name": "x"}, "data": {"a": "b"}})
            assert core.read_namespaced_config_map("x", "default").data == {"a": "b"}
            core.patch_namespaced_config_map("x", "default", {"data": {"c": "d"}})
            body = {
                "metadata": {"name": "d"},
                "spec": {
                    "selector": {"matchLabels": {"a": "b"}},
                    "template": {
                        "metadata": {"labels": {"a": "b"}},
                        "spec": {"containers": [{"name": "c", "image": "i"}]},
                    },
                },
            }
            apps.create_namespaced_deployment("default", body)
            scale = apps.read_namespaced_deployment_scale("d", "default")
            scale.spec.replicas = 3
            apps.replace_namespaced_deployment_scale("d", "default", scale)
            assert apps.read_namespaced_deployment("d", "default").spec.replicas == 3
            watch = kubernetes.watch.Watch()
            seen = []
            for event in watch.stream(core.list_namespaced_config_map, "default", timeout_seconds=1):
                seen.append(event["object"].metadata.name)
            with pytest.raises(ApiException) as refused:
                core.read_namespaced_pod("none", "default")
            assert refused.value.status == 404
            core.delete_namespaced_config_map("x", "default")
            dynamic = kubernetes.dynamic.DynamicClient(api)
            assert dynamic.resources.get(api_version="apps/v1", kind="Deployment").get(namespace="default").items
            api.rest_client.pool_manager.clear()  # its close() leaves connections open
            return seen

    assert await in_thread(work) == ["x"]


async def test_the_first_roles_are_made_once_and_kept_whole(door: Cluster) -> None:
    from insula.api.kube.feed import make_defaults

    before = (await door.kubectl("get", "clusterroles", "-o", "json")).json["items"]
    await make_defaults(door.verbs)
    after = (await door.kubectl("get", "clusterroles", "-o", "json")).json["items"]
    assert before == after
    await door.kubectl("patch", "clusterrole", "system:discovery", "--type=merge", "-p", '{"rules":[]}')
    await make_defaults(door.verbs)
    assert (await door.kubectl("get", "clusterrole", "system:discovery", "-o", "json")).json["rules"]
    await asyncio.sleep(0)
