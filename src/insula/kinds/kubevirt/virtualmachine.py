"""VirtualMachine: a machine that outlives its runs. Its run strategy says when it has a VirtualMachineInstance."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from insula.errors import Cause
from insula.kinds.kind import Kind
from insula.kinds.kubevirt.checks import check_instance, invalid
from insula.kinds.kubevirt.defaults import default_board, default_instance
from insula.kinds.kubevirt.instance import SPEC as INSTANCE_SPEC
from insula.kinds.kubevirt.refusals import refuse_instance, unsupported
from insula.kinds.kubevirt.shape import CONDITIONS, METADATA, free, many, record, root, switch, text, whole
from insula.kinds.kubevirt.virtualmachineinstance import condition
from insula.kinds.printing import age, column, get
from insula.model.resource import Ref, Resource

STRATEGIES = ("Always", "RerunOnFailure", "Manual", "Halted", "Once")
_REFUSED = {
    "instancetype": "say cpu and memory in the template",
    "preference": "say what is preferred in the template",
    "dataVolumeTemplates": "disks come from containerDisk, emptyDisk and cloudInitNoCloud",
}

_SPEC = record(
    "The machine that is wanted.",
    "template",
    runStrategy=text("When it runs: Always, RerunOnFailure, Manual, Once or Halted. Not together with running."),
    running=switch("Older form of runStrategy: true is Always, false is Halted."),
    template=record(
        "The VirtualMachineInstance to make.",
        "spec",
        metadata=METADATA,
        spec=INSTANCE_SPEC,
    ),
    instancetype=free("A named size."),
    preference=free("Named preferences."),
    dataVolumeTemplates=many("DataVolumes made with it.", free("One of them.")),
    updateVolumesStrategy=text("What a change of volumes does.", one_of=("Replacement", "Migration")),
)

_REQUEST = record(
    "One wish.",
    "action",
    action=text("What is wished.", one_of=("Start", "Stop")),
    uid=text("The instance that it is about."),
    data={"type": "object", "description": "More about it.", "additionalProperties": {"type": "string"}},
)

_STATUS = {
    **record(
        "The machine that is.",
        printableStatus=text("One word for people: Stopped, Starting, Running, Paused, Stopping and others."),
        ready=switch("Whether its instance is ready."),
        created=switch("Whether it has an instance."),
        conditions=CONDITIONS,
        stateChangeRequests=many("Wishes to start and stop that wait.", _REQUEST),
        startFailure=free("How often its instances failed in a row."),
        runStrategy=text("The run strategy that was last acted on."),
        observedGeneration=whole("The generation that was last acted on.", wide=True),
        desiredGeneration=whole("The generation wanted.", wide=True),
        volumeRequests=many("Volumes to plug in or out.", free("One of them.")),
        volumeSnapshotStatuses=many("Which volumes can be in a snapshot.", free("One of them.")),
    ),
    "x-kubernetes-preserve-unknown-fields": True,
}


def _default(obj: Resource) -> None:
    spec = obj.get("spec")
    template = spec.get("template") if isinstance(spec, dict) else None
    if isinstance(template, dict) and isinstance(template.get("spec"), dict):
        default_board(template["spec"])


def _prepare(new: Resource, old: Resource | None) -> None:
    if old is None:
        new.pop("status", None)


def _validate(new: Resource, _old: Resource | None) -> list[Cause]:
    """The template is checked as the instance that it will be."""
    spec = new["spec"]
    causes = list(_strategy(spec))
    causes += [unsupported(f"spec.{field}", why) for field, why in _REFUSED.items() if spec.get(field)]
    wanted = deepcopy(spec["template"]["spec"])
    default_instance(wanted)
    path = "spec.template.spec"
    return [*causes, *check_instance(wanted, path), *refuse_instance(wanted, path)]


def _strategy(spec: dict[str, Any]) -> list[Cause]:
    strategy = spec.get("runStrategy")
    if spec.get("running") is not None and strategy is not None:
        return [
            invalid(
                "spec.running",
                "Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy instead",
            )
        ]
    if strategy is not None and strategy not in STRATEGIES:
        return [invalid("spec.runStrategy", f"Invalid RunStrategy ({strategy}); accepted: {', '.join(STRATEGIES)}")]
    return []


def _row(obj: Resource) -> Sequence[Any]:
    return [age(obj), get(obj, "status", "printableStatus", default=""), condition(obj, "Ready")]


KIND = Kind(
    ref=Ref("kubevirt.io", "v1", "virtualmachines"),
    kind="VirtualMachine",
    singular="virtualmachine",
    namespaced=True,
    short_names=("vm", "vms"),
    categories=("all",),
    schema=root("VirtualMachine is a machine that outlives its runs.", _SPEC, _STATUS),
    subresources=("status",),
    default=_default,
    prepare=_prepare,
    validate=_validate,
    columns=(
        column("Age", description="How old it is."),
        column("Status", description="How it is, in one word."),
        column("Ready", description="Whether its instance is ready."),
    ),
    row=_row,
)
