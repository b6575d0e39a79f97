"""Query parameters and option bodies in the words of the verbs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from insula.api.kube.request import truth
from insula.errors import Cause, Invalid
from insula.verbs.request import DeleteOptions, FieldValidation, Preconditions, Propagation, Request, User

_POLICIES = ("Background", "Foreground", "Orphan")


def write_request(user: User, query: Mapping[str, str], user_agent: str) -> Request:
    """The circumstances of a write. Raises Invalid for options that do not exist."""
    validation = query.get("fieldValidation") or "Warn"
    if validation not in ("Strict", "Warn", "Ignore"):
        raise Invalid(
            f'fieldValidation: Unsupported value: "{validation}": supported values: "Ignore", "Warn", "Strict"',
            field="fieldValidation",
        )
    manager = query.get("fieldManager", "")
    if len(manager) > 128 or not manager.isprintable():
        raise Invalid(
            "fieldManager: Invalid value: it must be printable and at most 128 characters", field="fieldManager"
        )
    return Request(
        user=user,
        dry_run=_dry_run(query.get("dryRun")),
        field_manager=manager,
        field_validation=cast("FieldValidation", validation),
        force=truth(query.get("force")),
        user_agent=user_agent or "unknown",
    )


def _dry_run(value: object) -> bool:
    if value in (None, "", [], ()):
        return False
    if value in ("All", ["All"]):
        return True
    raise Invalid(f'dryRun: Unsupported value: {value!r}: supported values: "All"', field="dryRun")


def number(query: Mapping[str, str], name: str) -> int | None:
    """A whole number among the query parameters; None where it is absent. Raises Invalid."""
    text = query.get(name)
    if text is None or text == "":
        return None
    try:
        return int(text)
    except ValueError:
        raise Invalid(f'{name}: Invalid value: "{text[:64]}": it must be a whole number', field=name) from None


def delete_options(body: Any, query: Mapping[str, str]) -> tuple[DeleteOptions, bool]:
    """How to delete, and whether only to try: from the body, or where that is absent from the query."""
    given: dict[str, Any] = body if isinstance(body, dict) else {}
    if body is not None and not isinstance(body, dict):
        raise Invalid("the body of a deletion must be a DeleteOptions object")
    kind = given.get("kind", "DeleteOptions")
    if kind != "DeleteOptions":
        raise Invalid(f"the body of a deletion must be a DeleteOptions object, not {kind}")
    policy = given.get("propagationPolicy") or query.get("propagationPolicy")
    if policy is None and (orphan := given.get("orphanDependents", query.get("orphanDependents"))) is not None:
        policy = "Orphan" if orphan in (True, "true") else "Background"
    if policy is not None and policy not in _POLICIES:
        listed = ", ".join(f'"{each}"' for each in _POLICIES)
        raise Invalid(
            f'DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Unsupported value: "{policy}": '
            f"supported values: {listed}",
            causes=[Cause("propagationPolicy", "FieldValueNotSupported", f'Unsupported value: "{policy}"')],
        )
    grace = given.get("gracePeriodSeconds", number(query, "gracePeriodSeconds"))
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool)):
        raise Invalid("gracePeriodSeconds must be a whole number of seconds", field="gracePeriodSeconds")
    wanted = given.get("preconditions") or {}
    if not isinstance(wanted, dict):
        raise Invalid("preconditions must be an object with uid and resourceVersion", field="preconditions")
    options = DeleteOptions(
        grace_s=grace,
        propagation=cast("Propagation | None", policy),
        preconditions=Preconditions(
            uid=str(wanted.get("uid") or ""), revision=str(wanted.get("resourceVersion") or "")
        ),
    )
    return options, _dry_run(given.get("dryRun") or query.get("dryRun"))
