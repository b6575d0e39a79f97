"""Discovery documents, and what a request asks for and wants to get."""

from __future__ import annotations

import pytest

from insula.api.kube.discovery import Discovery, wants_aggregated
from insula.api.kube.errors import NotAcceptable, status_of
from insula.api.kube.negotiate import Form, choose
from insula.api.kube.request import Asked, read
from insula.errors import Cause, Invalid, NotFound, TooManyRequests
from insula.kinds.registry import Registry
from insula.model.resource import Ref

DISCOVERY = Discovery(Registry.builtin())
V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


def test_the_old_documents() -> None:
    assert DISCOVERY.legacy("/api", "h:1")["versions"] == ["v1"]
    groups = {each["name"]: each for each in DISCOVERY.legacy("/apis")["groups"]}
    assert groups["autoscaling"]["preferredVersion"]["version"] == "v2"
    resources = {each["name"]: each for each in DISCOVERY.legacy("/api/v1")["resources"]}
    assert resources["pods"]["shortNames"] == ["po"]
    assert resources["pods/eviction"] | {} == {
        "name": "pods/eviction",
        "singularName": "",
        "namespaced": True,
        "kind": "Eviction",
        "verbs": ["create"],
        "group": "policy",
        "version": "v1",
    }
    assert resources["serviceaccounts/token"]["kind"] == "TokenRequest"
    assert DISCOVERY.legacy("/apis/apps/v1")["groupVersion"] == "apps/v1"
    with pytest.raises(NotFound):
        DISCOVERY.legacy("/apis/none.example.com/v1")


def test_the_aggregated_document() -> None:
    made = DISCOVERY.aggregated("/apis", "v2")
    assert made["kind"] == "APIGroupDiscoveryList"
    apps = next(each for each in made["items"] if each["metadata"].get("name") == "apps")
    deployments = next(each for each in apps["versions"][0]["resources"] if each["resource"] == "deployments")
    assert deployments["scope"] == "Namespaced"
    assert deployments["responseKind"] == {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert [each["subresource"] for each in deployments["subresources"]] == ["scale", "status"]
    core = DISCOVERY.aggregated("/api", "v2")["items"]
    assert len(core) == 1 and core[0]["metadata"] == {}


def test_which_form_of_discovery_is_wanted() -> None:
    assert wants_aggregated(f"{V2},application/json") == "v2"
    assert wants_aggregated("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList") == "v2beta1"
    assert wants_aggregated("application/json") == ""
    assert wants_aggregated("*/*") == ""


@pytest.mark.parametrize(
    ("method", "path", "query", "wanted"),
    [
        ("GET", "/api/v1/pods", {}, Asked(verb="list", path="/api/v1/pods", ref=Ref("", "v1", "pods"))),
        ("GET", "/api/v1/pods", {"watch": "1"}, Asked(verb="watch", path="/api/v1/pods", ref=Ref("", "v1", "pods"))),
        (
            "GET",
            "/api/v1/namespaces/a/pods/b",
            {},
            Asked(verb="get", path="/api/v1/namespaces/a/pods/b", ref=Ref("", "v1", "pods"), namespace="a", name="b"),
        ),
        (
            "DELETE",
            "/apis/apps/v1/namespaces/a/deployments",
            {},
            Asked(
                verb="deletecollection",
                path="/apis/apps/v1/namespaces/a/deployments",
                ref=Ref("apps", "v1", "deployments"),
                namespace="a",
            ),
        ),
        (
            "PUT",
            "/api/v1/namespaces/a/pods/b/status",
            {},
            Asked(
                verb="update",
                path="/api/v1/namespaces/a/pods/b/status",
                ref=Ref("", "v1", "pods"),
                namespace="a",
                name="b",
                sub="status",
            ),
        ),
        (
            "GET",
            "/api/v1/namespaces/a",
            {},
            Asked(verb="get", path="/api/v1/namespaces/a", ref=Ref("", "v1", "namespaces"), namespace="a", name="a"),
        ),
        (
            "PUT",
            "/api/v1/namespaces/a/finalize",
            {},
            Asked(
                verb="update",
                path="/api/v1/namespaces/a/finalize",
                ref=Ref("", "v1", "namespaces"),
                namespace="a",
                name="a",
                sub="finalize",
            ),
        ),
        (
            "GET",
            "/api/v1/namespaces/a/status",
            {},
            Asked(
                verb="get",
                path="/api/v1/namespaces/a/status",
                ref=Ref("", "v1", "namespaces"),
                namespace="a",
                name="a",
                sub="status",
            ),
        ),
        (
            "GET",
            "/api/v1/nodes/n/proxy/stats/x",
            {},
            Asked(
                verb="get",
                path="/api/v1/nodes/n/proxy/stats/x",
                ref=Ref("", "v1", "nodes"),
                name="n",
                sub="proxy",
                rest="/stats/x",
            ),
        ),
        ("GET", "/api/v1/watch/pods", {}, Asked(verb="watch", path="/api/v1/watch/pods", ref=Ref("", "v1", "pods"))),
        (
            "GET",
            "/api/v1/configmaps/a%2Fb",
            {},
            Asked(verb="get", path="/api/v1/configmaps/a/b", ref=Ref("", "v1", "configmaps"), name="a/b"),
        ),
        ("GET", "/api/v1", {}, Asked(verb="get", path="/api/v1")),
        ("GET", "/apis/apps/v1", {}, Asked(verb="get", path="/apis/apps/v1")),
        ("GET", "/healthz", {}, Asked(verb="get", path="/healthz")),
    ],
)
def test_what_a_path_asks_for(method: str, path: str, query: dict[str, str], wanted: Asked) -> None:
    assert read(method, path, query) == wanted


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Form()),
        ("*/*", Form()),
        ("application/json", Form()),
        ("application/vnd.kubernetes.protobuf,application/json", Form()),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Form("table")),
        ("application/json;as=Table;v=v1beta1;g=meta.k8s.io", Form("table", False, "v1beta1")),
        ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", Form()),
        ("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", Form("metadata")),
        ("application/yaml", Form("object", True, "v1", "application/yaml")),
        ("text/html;q=0.9, application/json;q=0.5", Form()),
    ],
)
def test_the_form_of_the_answer(accept: str, form: Form) -> None:
    assert choose(accept) == form


def test_a_form_that_nobody_gives() -> None:
    with pytest.raises(NotAcceptable):
        choose("text/html")


def test_faults_as_status() -> None:
    fault = Invalid(
        'Deployment.apps "x" is invalid: spec.a: Required value',
        causes=[Cause("spec.a", "FieldValueRequired", "Required value")],
        kind="Deployment.apps",
        name="x",
    )
    assert status_of(fault) == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'Deployment.apps "x" is invalid: spec.a: Required value',
        "reason": "Invalid",
        "details": {
            "name": "x",
            "group": "apps",
            "kind": "Deployment",
            "causes": [{"reason": "FieldValueRequired", "message": "Required value", "field": "spec.a"}],
        },
        "code": 422,
    }
    assert status_of(Invalid("bad"))["reason"] == "BadRequest"
    busy = status_of(TooManyRequests("later", retry_after_s=2.4))
    assert (busy["code"], busy["details"]["retryAfterSeconds"]) == (429, 2)
