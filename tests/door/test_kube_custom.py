"""Custom resource definitions: new kinds at run time, with everything that built-in ones have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from door.kube_support import Cluster, cluster

# every kubectl is a vfork that holds this process until the child runs: on a busy machine that is no fault of the loop
pytestmark = pytest.mark.may_block

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 10},
                "mode": {"type": "string", "enum": ["fast", "safe"], "default": "safe"},
                "replicas": {"type": "integer"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            },
        },
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "phase": {"type": "string"}}},
    },
}


def definition(**more: Any) -> dict[str, Any]:
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _SCHEMA},
        "subresources": {
            "status": {},
            "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"},
        },
        "additionalPrinterColumns": [
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Phase", "type": "string", "jsonPath": ".status.phase", "priority": 1},
        ],
        "selectableFields": [{"jsonPath": ".spec.mode"}],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "names": {"kind": "Widget", "plural": "widgets", "shortNames": ["wd"], "categories": ["all"]},
            "scope": "Namespaced",
            "versions": [version],
            **more,
        },
    }


def widget(name: str = "one", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": 3, **spec}}


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as made:
        await made.apply(definition())
        await made.kubectl("wait", "crd/widgets.example.com", "--for=condition=Established", "--timeout=10s")
        yield made


async def test_a_custom_kind_is_like_any_other(door: Cluster) -> None:
    await door.apply(widget())
    got = (await door.kubectl("get", "wd", "one", "-o", "json")).json
    assert got["spec"] == {"size": 3, "mode": "safe"}  # the default came in
    table = (await door.kubectl("get", "widgets")).out.splitlines()
    assert table[0].split() == ["NAME", "SIZE", "AGE"]
    assert table[1].split()[:2] == ["one", "3"]
    assert (await door.kubectl("get", "wd", "-o", "wide")).out.splitlines()[0].split()[-1] == "PHASE"
    assert "widget.example.com/one" in (await door.kubectl("get", "all")).out
    assert "mode" in (await door.kubectl("explain", "widgets.spec")).out
    await door.kubectl("scale", "widget", "one", "--replicas=4")
    await door.kubectl(
        "patch", "widget", "one", "--type=merge", "-p", '{"spec":{"size":5},"status":{"phase":"ignored"}}'
    )
    await door.kubectl(
        "patch",
        "widget",
        "one",
        "--subresource=status",
        "--type=merge",
        "-p",
        '{"spec":{"size":9},"status":{"phase":"Ready"}}',
    )
    got = (await door.kubectl("get", "wd", "one", "-o", "json")).json
    assert (got["spec"]["size"], got["spec"]["replicas"], got["status"]) == (5, 4, {"phase": "Ready"})
    assert (await door.kubectl("get", "wd", "--field-selector=spec.mode=fast", "-o", "name")).out == ""
    assert (await door.kubectl("get", "wd", "--field-selector=spec.mode=safe", "-o", "name")).out


async def test_its_schema_is_enforced(door: Cluster) -> None:
    told = await door.kubectl("create", "-f", "-", stdin=widget(size=11), check=False)
    assert (
        'The Widget "one" is invalid: spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10'
        in told.err
    )
    told = await door.kubectl("create", "-f", "-", stdin=widget(size="big"), check=False)
    assert 'spec.size in body must be of type integer: "string"' in told.err
    told = await door.kubectl("create", "-f", "-", stdin=widget(mode="slow"), check=False)
    assert 'spec.mode: Unsupported value: "slow": supported values: "fast", "safe"' in told.err
    told = await door.kubectl("create", "-f", "-", stdin=widget(colour="red"), check=False)
    assert 'unknown field "spec.colour"' in told.err
    await door.kubectl("create", "--validate=ignore", "-f", "-", stdin=widget(colour="red", free={"any": {"thing": 1}}))
    got = (await door.kubectl("get", "wd", "one", "-o", "json")).json
    assert "colour" not in got["spec"] and got["spec"]["free"] == {"any": {"thing": 1}}


async def test_server_side_apply_of_a_custom_kind(door: Cluster) -> None:
    import yaml

    for manager, size in (("a", 2), ("b", 3)):
        ran = await door.kubectl(
            "apply",
            "--server-side",
            f"--field-manager={manager}",
            "-f",
            "-",
            stdin=yaml.safe_dump(widget(size=size)),
            check=False,
        )
    assert 'conflict with "a": .spec.size' in ran.err


async def test_deleting_the_definition_takes_its_objects_along(door: Cluster) -> None:
    await door.apply(widget(), widget("two"))
    await door.kubectl("delete", "crd", "widgets.example.com", "--timeout=20s")
    gone = await door.kubectl("get", "widgets", check=False)
    assert "the server could not find the requested resource" in gone.err or "doesn't have a resource" in gone.err
    await door.apply(definition())
    await door.kubectl("wait", "crd/widgets.example.com", "--for=condition=Established", "--timeout=10s")
    assert "No resources found" in (await door.kubectl("get", "widgets")).err


async def test_versions_show_the_same_objects(door: Cluster) -> None:
    wanted = definition()
    second = {**wanted["spec"]["versions"][0], "name": "v2", "storage": False}
    wanted["spec"]["versions"].append(second)
    await door.apply(wanted)
    await door.apply(widget())
    for _ in range(50):
        found = await door.kubectl("get", "--raw", "/apis/example.com/v2/namespaces/default/widgets/one", check=False)
        if found.code == 0:
            break
    assert found.json["apiVersion"] == "example.com/v2"


async def test_wrong_definitions_are_refused(door: Cluster) -> None:
    cases = {
        'must be spec.names.plural+"."+spec.group': {**definition(), "metadata": {"name": "other.example.com"}},
        "must have exactly one version marked as storage version": definition(
            versions=[{**definition()["spec"]["versions"][0], "storage": False}]
        ),
        'spec.scope: Unsupported value: "Galaxy"': definition(scope="Galaxy"),
    }
    for sentence, crd in cases.items():
        crd["metadata"] = {"name": crd["metadata"]["name"].replace("widgets", "widgets")}
        told = await door.kubectl("create", "--dry-run=server", "-f", "-", stdin=crd, check=False)
        assert sentence in told.err, told.err
