"""What the kinds that keep pods have in common: templates, selectors, replica counts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from insula.errors import Cause
from insula.kinds import podrules, podspec, rules
from insula.model.resource import Resource


def defaults(obj: Resource) -> dict[str, Any]:
    """Default the pod template; returns the spec to go on with."""
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return {}
    if isinstance(spec.get("template"), dict):
        podspec.template(spec["template"])
    return spec


def template(spec: Mapping[str, Any], path: str = "spec.template") -> list[Cause]:
    """A pod template."""
    inner = spec.get("template") or {}
    meta = inner.get("metadata") or {}
    return rules.labels(f"{path}.labels", meta.get("labels")) + podrules.spec(inner.get("spec") or {}, f"{path}.spec")


def selected(spec: Mapping[str, Any], path: str = "spec") -> list[Cause]:
    """A selector, and that it selects the template's pods."""
    chosen = spec.get("selector")
    if chosen is None:
        return [rules.required(f"{path}.selector")]
    found = rules.selector(f"{path}.selector", chosen)
    if found:
        return found
    if not (chosen.get("matchLabels") or chosen.get("matchExpressions")):
        return [rules.invalid(f"{path}.selector", chosen, "empty selector is invalid for deployment")]
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    if not rules.selects(chosen, labels):
        why = "`selector` does not match template `labels`"
        return [rules.invalid(f"{path}.template.metadata.labels", labels, why)]
    return []


def always_restarts(spec: Mapping[str, Any]) -> list[Cause]:
    """Pods that are kept alive must want it."""
    policy = ((spec.get("template") or {}).get("spec") or {}).get("restartPolicy")
    return rules.one_of("spec.template.spec.restartPolicy", policy, ("Always",))


def common(new: Resource, old: Resource | None) -> list[Cause]:
    """The checks of deployments, replica sets, stateful and daemon sets."""
    spec = new["spec"]
    found = rules.non_negative("spec.replicas", spec.get("replicas"))
    found += rules.non_negative("spec.minReadySeconds", spec.get("minReadySeconds"))
    found += rules.non_negative("spec.revisionHistoryLimit", spec.get("revisionHistoryLimit"))
    found += selected(spec)
    if not old or spec.get("template") != old["spec"].get("template"):
        found += template(spec) + always_restarts(spec)
    if old:
        found += rules.immutable("spec.selector", spec.get("selector"), old["spec"].get("selector"))
    return found
