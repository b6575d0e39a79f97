"""Admission webhooks and policies, API services, flow control: what configures the API server itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules
from insula.kinds.builtin import row
from insula.kinds.kind import Kind
from insula.kinds.printing import UNSET, age, column, get
from insula.model.resource import Resource

_API = "admissionregistration.k8s.io/v1"


def _default_rules(owner: Resource, field: str) -> None:
    for rule in owner.get(field) or ():
        rule.setdefault("scope", "*")


def _default_webhooks(obj: Resource) -> None:
    for hook in obj.get("webhooks") or ():
        hook.setdefault("failurePolicy", "Fail")
        hook.setdefault("matchPolicy", "Equivalent")
        hook.setdefault("namespaceSelector", {})
        hook.setdefault("objectSelector", {})
        hook.setdefault("timeoutSeconds", 10)
        if obj.get("kind") == "MutatingWebhookConfiguration":
            hook.setdefault("reinvocationPolicy", "Never")
        if isinstance(service := get(hook, "clientConfig", "service"), dict):
            service.setdefault("port", 443)
        _default_rules(hook, "rules")


def _validate_webhooks(new: Resource, _old: Resource | None) -> list[Cause]:
    found: list[Cause] = []
    names: set[str] = set()
    for index, hook in enumerate(new.get("webhooks") or ()):
        where, name = f"webhooks[{index}]", hook.get("name") or ""
        if name.count(".") < 2:
            found.append(
                rules.invalid(
                    f"{where}.name", name, "should be a domain with at least three segments separated by dots"
                )
            )
        if name in names:
            found.append(rules.duplicate(f"{where}.name", name))
        names.add(name)
        config = hook.get("clientConfig") or {}
        if bool(config.get("url")) == bool(config.get("service")):
            found.append(rules.required(f"{where}.clientConfig", "exactly one of url or service is required"))
        if hook.get("sideEffects") not in ("None", "NoneOnDryRun"):
            found.append(rules.unsupported(f"{where}.sideEffects", hook.get("sideEffects"), ("None", "NoneOnDryRun")))
        if not hook.get("admissionReviewVersions"):
            found.append(rules.required(f"{where}.admissionReviewVersions", "must specify one of v1, v1beta1"))
    return found


def _default_policy(obj: Resource) -> None:
    if isinstance(spec := obj.get("spec"), dict):
        spec.setdefault("failurePolicy", "Fail")
        if isinstance(match := spec.get("matchConstraints"), dict):
            match.setdefault("matchPolicy", "Equivalent")
            match.setdefault("namespaceSelector", {})
            match.setdefault("objectSelector", {})
            _default_rules(match, "resourceRules")
            _default_rules(match, "excludeResourceRules")


def _policy_row(obj: Resource) -> Sequence[Any]:
    found = get(obj, "spec", "paramKind")
    kind = f"{found.get('apiVersion')}/{found.get('kind')}" if found else UNSET
    checks = get(obj, "spec", "validations") or get(obj, "spec", "mutations") or []
    return len(checks), kind, age(obj)


def _binding_row(obj: Resource) -> Sequence[Any]:
    param = get(obj, "spec", "paramRef", "name", default=UNSET)
    return get(obj, "spec", "policyName", default=""), param, age(obj)


def _webhook_kind(name: str) -> Kind:
    return replace(
        row(_API, name),
        default=_default_webhooks,
        validate=_validate_webhooks,
        columns=(column("Webhooks", "integer"), column("Age")),
        row=lambda obj: (len(obj.get("webhooks") or ()), age(obj)),
    )


def _policy_kind(name: str, count: str) -> Kind:
    return replace(
        row(_API, name),
        default=_default_policy,
        columns=(column(count, "integer"), column("ParamKind"), column("Age")),
        row=_policy_row,
    )


def _binding_kind(name: str) -> Kind:
    return replace(row(_API, name), columns=(column("PolicyName"), column("ParamRef"), column("Age")), row=_binding_row)


# --- API services and flow control --------------------------------------------------------------------------------------


def _service_row(obj: Resource) -> Sequence[Any]:
    service = get(obj, "spec", "service")
    conditions = {each.get("type"): each for each in get(obj, "status", "conditions", default=[])}
    available = conditions.get("Available", {})
    said = available.get("status", "Unknown")
    if said == "False" and available.get("reason"):
        said = f"False ({available['reason']})"
    where = f"{service.get('namespace')}/{service.get('name')}" if service else "Local"
    return where, said, age(obj)


def _validate_service(new: Resource, _old: Resource | None) -> list[Cause]:
    spec = new.get("spec") or {}
    wanted = f"{spec.get('version')}.{spec.get('group') or ''}"
    if new["metadata"].get("name") not in (wanted, wanted.rstrip(".") + "."):
        why = f'must be `spec.version+"."+spec.group`: {wanted}'
        return [rules.invalid("metadata.name", new["metadata"].get("name"), why)]
    return []


def _default_flow(obj: Resource) -> None:
    if isinstance(spec := obj.get("spec"), dict) and not spec.get("matchingPrecedence"):
        spec["matchingPrecedence"] = 1000


def _flow_row(obj: Resource) -> Sequence[Any]:
    conditions = {each.get("type"): each.get("status") for each in get(obj, "status", "conditions", default=[])}
    return (
        get(obj, "spec", "priorityLevelConfiguration", "name", default="<none>"),
        get(obj, "spec", "matchingPrecedence", default=0),
        get(obj, "spec", "distinguisherMethod", "type", default="<none>"),
        age(obj),
        conditions.get("Dangling", "?"),
    )


def _level_row(obj: Resource) -> Sequence[Any]:
    limited = get(obj, "spec", "limited", default={})
    queuing = get(limited, "limitResponse", "queuing", default={})
    return (
        get(obj, "spec", "type", default=""),
        limited.get("nominalConcurrencyShares", "<none>"),
        queuing.get("queues", "<none>"),
        queuing.get("handSize", "<none>"),
        queuing.get("queueLengthLimit", "<none>"),
        age(obj),
    )


KINDS = (
    _webhook_kind("MutatingWebhookConfiguration"),
    _webhook_kind("ValidatingWebhookConfiguration"),
    _policy_kind("ValidatingAdmissionPolicy", "Validations"),
    _policy_kind("MutatingAdmissionPolicy", "Mutations"),
    _binding_kind("ValidatingAdmissionPolicyBinding"),
    _binding_kind("MutatingAdmissionPolicyBinding"),
    replace(
        row("apiregistration.k8s.io/v1", "APIService"),
        validate=_validate_service,
        columns=(column("Service"), column("Available"), column("Age")),
        row=_service_row,
    ),
    replace(
        row("flowcontrol.apiserver.k8s.io/v1", "FlowSchema"),
        default=_default_flow,
        columns=(
            column("PriorityLevel"),
            column("MatchingPrecedence"),
            column("DistinguisherMethod"),
            column("Age"),
            column("MissingPL"),
        ),
        row=_flow_row,
    ),
    replace(
        row("flowcontrol.apiserver.k8s.io/v1", "PriorityLevelConfiguration"),
        columns=(
            column("Type"),
            column("NominalConcurrencyShares"),
            column("Queues"),
            column("HandSize"),
            column("QueueLengthLimit"),
            column("Age"),
        ),
        row=_level_row,
    ),
)
