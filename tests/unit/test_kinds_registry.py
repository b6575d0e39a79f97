"""The registry: what is there, in which order, and how it changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from insula.errors import AlreadyExists, NotFound
from insula.kinds import schemas
from insula.kinds.kind import Kind
from insula.kinds.registry import Registry, version_order
from insula.model.resource import Ref


def custom(plural: str = "things", version: str = "v1") -> Kind:
    return Kind(ref=Ref("example.com", version, plural), kind="Thing", singular="thing", namespaced=True)


def test_every_built_in_kind_is_there() -> None:
    registry = Registry.builtin()
    assert registry.by_gvk("v1", "Pod").ref == Ref("", "v1", "pods")
    assert registry.by_ref(Ref("apps", "v1", "deployments")).short_names == ("deploy",)
    assert len(registry.all()) >= 100
    for kind in registry.all():
        assert registry.find(kind.ref) is kind
        assert kind.schema is None or schemas.of(kind) is not None


def test_groups_come_in_discovery_order_and_versions_by_preference() -> None:
    groups = Registry.builtin().groups()
    assert next(iter(groups)) == ""
    assert groups["autoscaling"] == ["v2", "v1"]
    assert groups["resource.k8s.io"] == ["v1", "v1beta2", "v1beta1", "v1alpha3"]


def test_version_priority() -> None:
    names = ["foo1", "v1alpha1", "v2", "v1beta2", "v10", "v1beta1", "v1", "v11alpha2"]
    assert sorted(names, key=version_order) == [
        "v10",
        "v2",
        "v1",
        "v1beta2",
        "v1beta1",
        "v11alpha2",
        "v1alpha1",
        "foo1",
    ]


def test_custom_kinds_come_and_go() -> None:
    registry, told = Registry([]), []
    registry.subscribe(lambda: told.append(registry.generation))
    registry.add(custom())
    with pytest.raises(AlreadyExists):
        registry.add(custom())
    registry.add(replace(custom(), short_names=("th",)), replace=True)
    assert registry.by_gvk("example.com/v1", "Thing").short_names == ("th",)
    registry.remove(custom().ref)
    assert registry.find(custom().ref) is None
    assert told == [1, 2, 3]


def test_unknown_types_are_told_in_kubectls_words() -> None:
    with pytest.raises(NotFound, match='no matches for kind "Foo" in version "v1"'):
        Registry.builtin().by_gvk("v1", "Foo")
    with pytest.raises(NotFound, match="could not find the requested resource"):
        Registry.builtin().by_ref(Ref("", "v1", "foos"))


def test_schema_nodes_know_merge_keys_through_references() -> None:
    node = schemas.node(Registry.builtin().by_gvk("v1", "Pod"))
    assert node is not None
    spec = node.field("spec")
    assert spec is not None
    containers = spec.field("containers")
    assert containers is not None and containers.merge_key == "name"
    strategy = schemas.field(schemas.get("io.k8s.api.apps.v1.DeploymentSpec"), "strategy")
    assert strategy is not None and strategy["x-kubernetes-patch-strategy"] == "retainKeys"
