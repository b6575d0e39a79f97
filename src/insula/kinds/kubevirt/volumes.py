"""The schemas of `volumes` and `networks`: what disks hold and where network cards lead."""

from __future__ import annotations

from insula.kinds.kubevirt.shape import Shape, free, quantity, record, switch, text

SOURCES = (
    "containerDisk", "cloudInitNoCloud", "cloudInitConfigDrive", "emptyDisk", "persistentVolumeClaim", "dataVolume",
    "ephemeral", "hostDisk", "configMap", "secret", "serviceAccount", "downwardAPI", "downwardMetrics", "sysprep",
    "memoryDump", "containerPath",
)  # fmt: skip

_PULL = {
    "imagePullPolicy": text("Always, IfNotPresent or Never.", one_of=("Always", "IfNotPresent", "Never")),
    "imagePullSecret": text("Secret with the registry's credentials."),
}
_SECRET = record("A Secret in the machine's namespace.", name=text("Name of the Secret."))
_CLOUD_INIT = {
    "userData": text("The user data, at most 2048 bytes; more by secretRef."),
    "userDataBase64": text("The user data in base64."),
    "secretRef": {**_SECRET, "description": "Secret with the user data under userdata or userData."},
    "networkData": text("The network configuration, at most 2048 bytes."),
    "networkDataBase64": text("The network configuration in base64."),
    "networkDataSecretRef": {**_SECRET, "description": "Secret with it under networkdata or networkData."},
}

VOLUME: Shape = record(
    "What the disk of the same name holds: exactly one source.",
    "name",
    name=text("Name of the volume, and of its disk."),
    containerDisk=record(
        "A disk file from an image's folder /disk. Changes are thrown away when the machine stops.",
        "image",
        image=text("Reference of the image."),
        path=text("Path of the disk file inside, when it is not the only one in /disk."),
        **_PULL,
    ),
    cloudInitNoCloud=record("A seed disk for cloud-init, as its NoCloud data source reads it.", **_CLOUD_INIT),
    cloudInitConfigDrive=record("A seed disk as cloud-init's ConfigDrive data source reads it.", **_CLOUD_INIT),
    emptyDisk=record(
        "An empty disk, thrown away when the machine is deleted.", "capacity", capacity=quantity("Its size.")
    ),
    persistentVolumeClaim=record(
        "A claim in the machine's namespace.",
        "claimName",
        claimName=text("Name of the claim."),
        readOnly=switch("Never write to it."),
        hotpluggable=switch("It can be plugged in and out."),
    ),
    dataVolume=record(
        "The claim that a DataVolume fills.",
        "name",
        name=text("Name of the DataVolume."),
        hotpluggable=switch("It can be plugged in and out."),
    ),
    ephemeral=free("A claim below a layer that is thrown away."),
    hostDisk=free("A file on the node."),
    configMap=free("A ConfigMap as a disk."),
    secret=free("A Secret as a disk."),
    serviceAccount=free("A service account's token as a disk."),
    downwardAPI=free("Fields of the machine as a disk."),
    downwardMetrics=free("Metrics of the node as a disk."),
    sysprep=free("Answers for Windows' set-up."),
    memoryDump=free("A place for memory dumps."),
    containerPath=free("A path of the launcher's container."),
)

NETWORK: Shape = record(
    "Where the interface of the same name leads: exactly one.",
    "name",
    name=text("Name of the network, and of its interface."),
    pod=record(
        "The pod network.",
        vmNetworkCIDR=text("Addresses behind a masquerade. In Insula machines have addresses of the segment."),
        vmIPv6NetworkCIDR=text("The same for IPv6."),
    ),
    multus=record(
        "A further network.",
        "networkName",
        networkName=text("NAMESPACE/NAME of the definition."),
        default=switch("In place of the pod network."),
    ),
    resourceClaim=free("A network device of a resource claim."),
)
