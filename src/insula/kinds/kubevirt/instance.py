"""The schemas of a VirtualMachineInstance's spec and status."""

from __future__ import annotations

from insula.kinds.kubevirt.domain import DOMAIN
from insula.kinds.kubevirt.shape import CONDITIONS, Shape, free, many, quantity, record, text, whole, words
from insula.kinds.kubevirt.volumes import NETWORK, VOLUME

SPEC: Shape = record(
    "The machine that is wanted.",
    "domain",
    domain=DOMAIN,
    volumes=many("What the disks hold.", VOLUME, key="name"),
    networks=many("Where the network cards lead.", NETWORK, key="name"),
    hostname=text("Host name of the guest. Defaults to the name of the object."),
    subdomain=text("Subdomain of its host name."),
    terminationGracePeriodSeconds=whole(
        "How long the guest has, after its power button was pressed, until the plug is pulled. Defaults to 30.",
        least=0,
        wide=True,
    ),
    startStrategy=text("Paused: made, but not let run until it is unpaused.", one_of=("Paused",)),
    evictionStrategy=text(
        "What happens when its node is drained.", one_of=("None", "LiveMigrate", "LiveMigrateIfPossible", "External")
    ),
    architecture=text("Instruction set: amd64."),
    nodeSelector=words("Labels that the node must have."),
    affinity=free("Affinity to nodes, pods and machines."),
    tolerations=many("Taints that are tolerated.", free("One toleration.")),
    topologySpreadConstraints=many("How to spread over the cluster.", free("One constraint.")),
    schedulerName=text("The scheduler that places it."),
    priorityClassName=text("Its priority class."),
    dnsPolicy=text("How the guest's names are resolved."),
    dnsConfig=free("The guest's resolver."),
    livenessProbe=free("Restart it when this fails."),
    readinessProbe=free("Ready only while this succeeds."),
    accessCredentials=many("Keys and passwords put into the guest.", free("One of them.")),
    resourceClaims=many("Devices claimed.", free("One claim.")),
)

_INTERFACE = record(
    "A network card as it is.",
    name=text("Name of its network."),
    ipAddress=text("Its address."),
    ipAddresses={"type": "array", "items": {"type": "string"}, "description": "All its addresses."},
    mac=text("Its hardware address."),
    interfaceName=text("Its name in the guest."),
    podInterfaceName=text("Its name on the host."),
    infoSource=text("Who knows this."),
    linkState=text("up or down."),
    queueCount=whole("Queues."),
)

STATUS: Shape = {
    **record(
        "The machine that is.",
        phase=text("Pending, Scheduling, Scheduled, Running, Succeeded, Failed or Unknown."),
        reason=text("A word for why."),
        nodeName=text("The node that it runs on."),
        conditions=CONDITIONS,
        interfaces=many("Its network cards.", _INTERFACE),
        guestOSInfo=free("What the guest agent tells of the system."),
        activePods=words("Node by the id of what runs there."),
        machine=record("The board.", type=text("Its type.")),
        memory=record(
            "Its memory.",
            guestAtBoot=quantity("When it started."),
            guestCurrent=quantity("Now."),
            guestRequested=quantity("Asked for."),
        ),
        currentCPUTopology=record(
            "Its CPUs.", cores=whole("Cores."), sockets=whole("Sockets."), threads=whole("Threads.")
        ),
        phaseTransitionTimestamps=many(
            "When it got to which phase.",
            record("One step.", phase=text("The phase."), phaseTransitionTimestamp={**text("When."), "nullable": True}),
        ),
        volumeStatus=many("Its volumes.", free("One of them.")),
        migrationMethod=text("LiveMigration or BlockMigration."),
        migrationState=free("The last migration."),
        migrationTransport=text("How it migrates."),
        qosClass=text("Guaranteed, Burstable or BestEffort."),
    ),
    "x-kubernetes-preserve-unknown-fields": True,
}
