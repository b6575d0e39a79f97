"""The network of a machine for an image: it takes over the interfaces of the namespace that the engine made, with their names,
hardware and network addresses. So published ports, names, policies and disconnecting are those of any container.

For each interface there is a tap beside it, and the kernel hands every frame from one to the other (host/redirect.py).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress

from msgspec import Struct

from insula.drivers.microvm.argv import Card
from insula.errors import NotFound, Unsupported
from insula.host import netlink, netns
from insula.host.netlink import Link, Rtnl
from insula.host.redirect import leave_ingress, redirect, take_ingress

_KINDS = frozenset({"veth", "macvlan", "ipvlan"})
_NOTHING_THERE = (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP)
_ANYWHERE = {"0.0.0.0/0": "0.0.0.0", "::/0": "::"}  # noqa: S104 - the default routes, and "no gateway"
_TAP = "vm-"  # and the interface's name, which has 15 characters at most


class Interface(Struct, frozen=True, kw_only=True):
    """An interface to take over. Addresses have their prefix length; a default route has the gateway and its metric."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[str, ...] = ()
    routes: tuple[tuple[str, int], ...] = ()

    @property
    def card(self) -> Card:
        """Its card in QEMU's words."""
        return Card(tap=tap_of(self.name), mac=self.mac)

    def records(self) -> list[tuple[str, str]]:
        """What the agent is told of it."""
        found = [("card", f"{self.name} {self.mac} {self.mtu}")]
        found += [("address", f"{self.name} {each.replace('/', ' ')}") for each in self.addresses]
        return found + [("route", f"{self.name} {gateway} {metric}") for gateway, metric in self.routes]


def tap_of(name: str) -> str:
    """The tap beside an interface."""
    return (_TAP + name)[:15]


async def take_over(namespace: str) -> list[Interface]:
    """Every interface of a namespace, each with a tap beside it that gets its frames. Repeatable. Raises HostFault, NotFound for
    a namespace that is not there, Unsupported for one whose network another machine has."""
    return await netns.visit(namespace, _take_over)


def _take_over() -> list[Interface]:
    with Rtnl() as rtnl:
        links = rtnl.links()
        if any(_in_use(link) for link in links):
            raise Unsupported(
                "The network belongs to another machine already: a pod with runtimeClassName vm runs one container at a time.",
                field="network_mode",
            )
        found = [link for link in links if link.kind in _KINDS]
        for link in found:
            _join(rtnl, link)
        addresses = [*rtnl.addresses(), *rtnl.addresses(ipv6=True)]
        routes = [each for each in (*rtnl.routes(), *rtnl.routes(ipv6=True)) if each.destination in _ANYWHERE]
        return [
            Interface(
                name=link.name,
                mac=link.mac,
                mtu=link.mtu,
                addresses=tuple(text for index, text in addresses if index == link.index and _is_given(text)),
                routes=tuple(
                    (each.gateway or _ANYWHERE[each.destination], each.metric)
                    for each in routes
                    if each.index == link.index
                ),
            )
            for link in sorted(found, key=lambda link: link.name)
        ]


def _in_use(link: Link) -> bool:
    """Whether it is a tap that a QEMU holds: then it has a carrier."""
    return link.name.startswith(_TAP) and link.running


def _is_given(address: str) -> bool:
    """Whether somebody chose it; its own kernel makes the link-local ones."""
    return not ipaddress.ip_interface(address).is_link_local or "." in address


def _join(rtnl: Rtnl, link: Link) -> None:
    name = tap_of(link.name)
    if rtnl.link(name) is None:
        netlink.add_tap(name)
    tap = rtnl.link(name)
    assert tap is not None
    rtnl.run(netlink.set_link(name, up=True, mtu=link.mtu, no_ipv6=True))
    for one, other in ((link.index, tap.index), (tap.index, link.index)):
        rtnl.run(leave_ingress(one), ignore=_NOTHING_THERE)
        rtnl.run(take_ingress(one), redirect(one, other))


async def give_back(namespace: str) -> None:
    """Remove the taps and their redirections, so that another may take over. Repeatable; a namespace that is gone is fine."""
    if netns.is_namespace(namespace):
        with contextlib.suppress(NotFound):  # the network was cleared beside this, with all that was in it
            await netns.visit(namespace, _give_back)


def _give_back() -> None:
    with Rtnl() as rtnl:
        links = rtnl.links()
        if any(_in_use(link) for link in links):
            return  # another machine's: whoever gives back has ended
        for link in links:
            if link.name.startswith(_TAP):
                rtnl.run(netlink.delete_link(link.name), ignore=(errno.ENODEV,))
            elif link.kind in _KINDS:
                rtnl.run(leave_ingress(link.index), ignore=_NOTHING_THERE)
