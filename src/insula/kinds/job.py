"""Job and CronJob."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from insula.errors import Cause
from insula.kinds import rules, workloads
from insula.kinds.builtin import row
from insula.kinds.printing import NONE, Since, Span, age, column, containers, get, selector
from insula.model.resource import Resource

_NEVER_ALWAYS = ("OnFailure", "Never")
_COUNTS = ("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished")
_UID_LABELS = ("batch.kubernetes.io/controller-uid", "controller-uid")
_NAME_LABELS = ("batch.kubernetes.io/job-name", "job-name")
_SCHEDULE = re.compile(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly)\Z|@every [0-9hmsµu.]+\Z")
_SCHEDULE_FIELD = re.compile(r"[0-9A-Za-z*/,?\-LW#]+\Z")


def default_spec(spec: dict[str, Any]) -> None:
    """A job's own fields."""
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = spec["parallelism"] = 1
    if spec.get("parallelism") is None:
        spec["parallelism"] = 1
    if spec.get("backoffLimit") is None:
        per_index = spec.get("backoffLimitPerIndex") is not None
        spec["backoffLimit"] = 2**31 - 1 if per_index else 6
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("suspend", False)
    failure = bool(spec.get("podFailurePolicy"))
    spec.setdefault("podReplacementPolicy", "Failed" if failure else "TerminatingOrFailed")
    spec.setdefault("manualSelector", False)


def default(obj: Resource) -> None:
    """As batch/v1 fills it in."""
    spec = workloads.defaults(obj)
    if not spec:
        return
    default_spec(spec)
    own = get(spec, "template", "metadata", "labels", default={})
    if own and not obj["metadata"].get("labels"):
        obj["metadata"]["labels"] = dict(own)


def prepare(new: Resource, old: Resource | None) -> None:
    """A new job selects its own pods by its uid, unless its author takes care of that."""
    spec = new.get("spec") or {}
    if old is not None or spec.get("manualSelector"):
        return
    meta, inner = new["metadata"], spec.setdefault("template", {})
    own = inner.setdefault("metadata", {})
    if not isinstance(own.get("labels"), dict):
        own["labels"] = {}
    own["labels"] |= dict.fromkeys(_UID_LABELS, meta["uid"]) | dict.fromkeys(_NAME_LABELS, meta.get("name") or "")
    if spec.get("selector") is None:
        spec["selector"] = {"matchLabels": {_UID_LABELS[0]: meta["uid"]}}


def validate(new: Resource, old: Resource | None) -> list[Cause]:
    """Counts, template, selector; most of it never changes."""
    spec = new.get("spec") or {}
    found = _spec(spec, "spec")
    if old is None:
        return found + (workloads.selected(spec) if spec.get("selector") is not None else [])
    before = old["spec"]
    for name in ("completions", "selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"):
        if name == "completions" and spec.get("completionMode") == "Indexed":
            continue
        found += rules.immutable(f"spec.{name}", spec.get(name), before.get(name))
    if not before.get("suspend"):
        found += rules.immutable("spec.template", spec.get("template"), before.get("template"))
    return found


def _spec(spec: Mapping[str, Any], path: str) -> list[Cause]:
    found: list[Cause] = []
    for name in _COUNTS:
        found += rules.non_negative(f"{path}.{name}", spec.get(name))
    found += rules.one_of(f"{path}.completionMode", spec.get("completionMode"), ("NonIndexed", "Indexed"))
    if spec.get("completionMode") == "Indexed" and spec.get("completions") is None:
        found.append(rules.required(f"{path}.completions", "when completion mode is Indexed"))
    policy = get(spec, "template", "spec", "restartPolicy")
    if policy not in _NEVER_ALWAYS:
        where = f"{path}.template.spec.restartPolicy"
        if policy == "Always":
            found.append(rules.required(where, 'valid values: "OnFailure", "Never"'))
        else:
            found.append(rules.unsupported(where, policy, _NEVER_ALWAYS))
    return found + workloads.template(spec, f"{path}.template")


def _status(obj: Resource) -> str:
    conditions = {
        each.get("type") for each in get(obj, "status", "conditions", default=[]) if each.get("status") == "True"
    }
    if "Complete" in conditions:
        return "Complete"
    if "Failed" in conditions:
        return "Failed"
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for word, said in (
        ("Suspended", "Suspended"),
        ("FailureTarget", "FailureTarget"),
        ("SuccessCriteriaMet", "SuccessCriteriaMet"),
    ):
        if word in conditions:
            return said
    return "Running"


def _row(obj: Resource) -> Sequence[Any]:
    names, images = containers(get(obj, "spec", "template", "spec"))
    done, wanted = get(obj, "status", "succeeded", default=0), get(obj, "spec", "completions")
    parallel = get(obj, "spec", "parallelism", default=0)
    total = str(wanted) if wanted is not None else f"1 of {parallel}" if parallel > 1 else "1"
    status = obj.get("status") or {}
    return (
        _status(obj),
        f"{done}/{total}",
        Span(status.get("startTime", ""), status.get("completionTime", ""), ""),
        age(obj),
        names,
        images,
        selector(get(obj, "spec", "selector")),
    )


def fields(obj: Resource) -> dict[str, str]:
    """Selectable fields."""
    return {"status.successful": str(get(obj, "status", "succeeded", default=0))}


# --- CronJob -----------------------------------------------------------------------------------------------------------


def _default_cron(obj: Resource) -> None:
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    spec.setdefault("concurrencyPolicy", "Allow")
    spec.setdefault("suspend", False)
    spec.setdefault("successfulJobsHistoryLimit", 3)
    spec.setdefault("failedJobsHistoryLimit", 1)
    inner = get(spec, "jobTemplate", "spec")
    if isinstance(inner, dict):
        workloads.defaults({"spec": inner})


def _validate_cron(new: Resource, _old: Resource | None) -> list[Cause]:
    spec = new.get("spec") or {}
    found = [] if spec.get("schedule") else [rules.required("spec.schedule")]
    if spec.get("schedule") and not _is_schedule(spec["schedule"]):
        found.append(
            rules.invalid(
                "spec.schedule",
                spec["schedule"],
                "expected exactly 5 fields: minute, hour, day of month, month, day of week",
            )
        )
    found += rules.one_of("spec.concurrencyPolicy", spec.get("concurrencyPolicy"), ("Allow", "Forbid", "Replace"))
    for name in ("startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
        found += rules.non_negative(f"spec.{name}", spec.get(name))
    if len(new["metadata"].get("name") or "") > 52:
        found.append(rules.invalid("metadata.name", new["metadata"]["name"], "must be no more than 52 characters"))
    inner = get(spec, "jobTemplate", "spec", default={})
    found += _spec(inner, "spec.jobTemplate.spec")
    if get(inner, "manualSelector"):
        found.append(rules.unsupported("spec.jobTemplate.spec.manualSelector", True, ("nil", "false")))
    return found


def _is_schedule(text: str) -> bool:
    if _SCHEDULE.match(text):
        return True
    parts = text.split()
    return len(parts) == 5 and all(_SCHEDULE_FIELD.match(part) for part in parts)


def _cron_row(obj: Resource) -> Sequence[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    names, images = containers(get(spec, "jobTemplate", "spec", "template", "spec"))
    return (
        spec.get("schedule", ""),
        spec.get("timeZone") or NONE,
        "True" if spec.get("suspend") else "False",
        len(status.get("active") or ()),
        Since(status.get("lastScheduleTime") or "", never=NONE),
        age(obj),
        names,
        images,
        selector(get(spec, "jobTemplate", "spec", "selector")),
    )


KINDS = (
    replace(
        row("batch/v1", "Job"),
        default=default,
        prepare=prepare,
        validate=validate,
        fields=fields,
        columns=(
            column("Status"),
            column("Completions"),
            column("Duration"),
            column("Age"),
            column("Containers", wide=True),
            column("Images", wide=True),
            column("Selector", wide=True),
        ),
        row=_row,
    ),
    replace(
        row("batch/v1", "CronJob"),
        default=_default_cron,
        validate=_validate_cron,
        columns=(
            column("Schedule"),
            column("Timezone"),
            column("Suspend"),
            column("Active", "integer"),
            column("Last Schedule"),
            column("Age"),
            column("Containers", wide=True),
            column("Images", wide=True),
            column("Selector", wide=True),
        ),
        row=_cron_row,
    ),
)
