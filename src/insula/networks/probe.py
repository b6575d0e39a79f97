"""What a host lacks, or does, that networks suffer from: sentences for `insula doctor`."""

from __future__ import annotations

import os
from pathlib import Path

from insula.errors import HostFault
from insula.networks.kernel import Kernel


def notes(kernel: Kernel, *, mend: bool = True) -> list[str]:
    """Blocking; on the kernel's thread. Empty when all is well. With `mend` Docker's chain for such rules is opened on the way;
    without it (Insula does not run) nothing is changed, and what Insula sets when it starts is not missed."""
    return [*_missing(), *_sysctls(mend), *_hostile(kernel, mend)]


def _missing() -> list[str]:
    found = []
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        found.append("/dev/net/tun is missing: machines get no network. Load the module tun (modprobe tun).")
    if not Path("/proc/sys/net/bridge").exists() and not Path("/sys/module/bridge").exists():
        found.append(
            "The kernel's bridge module is not loaded yet; it is loaded with the first network if it is there."
        )
    return found


def _sysctls(mend: bool) -> list[str]:
    found = []
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    if mend and forward.read_text().strip() != "1":
        found.append(
            "net.ipv4.ip_forward is off: instances reach nothing but this host. sysctl -w net.ipv4.ip_forward=1"
        )
    if not os.access(forward, os.W_OK):
        found.append("/proc/sys is read-only: network settings of new instances stay at the kernel's defaults.")
    bridged = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if bridged.exists() and bridged.read_text().strip() == "1":
        found.append(
            "net.bridge.bridge-nf-call-iptables is on: other tools' firewalls also see traffic within a segment. "
            "Unless Docker or a CNI plugin needs it: sysctl -w net.bridge.bridge-nf-call-iptables=0"
        )
    return found


def _hostile(kernel: Kernel, mend: bool) -> list[str]:
    try:
        chains, inputs = kernel.hostile_chains("forward"), kernel.hostile_chains("input")
        opened = bool(chains) and (kernel.open_docker_user() if mend else kernel.has_docker_user())
    except HostFault as fault:
        return [f"nftables does not work here: {fault}"]
    found = [
        f"The firewall chain {chain} drops packets to this host by policy: instances get DNS and addresses only if it "
        f"lets them through: nft insert rule {chain} iifname '\"{kernel.prefix}*\"' accept"
        for chain in inputs
    ]
    for chain in chains:
        if opened and chain == "ip filter FORWARD":
            continue
        rules = "; ".join(
            f"nft insert rule {chain} {side} '\"{kernel.prefix}*\"' accept" for side in ("iifname", "oifname")
        )
        found.append(
            f"The firewall chain {chain} drops forwarded packets by policy, ours too. To let them through: {rules}"
        )
    return found
