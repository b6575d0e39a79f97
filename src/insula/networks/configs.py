"""Networks that only lend their settings to others (`--config-only`), and those that take them (`--config-from`). Pure. The
sentences are dockerd's."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from insula.errors import Forbidden, NotFound
from insula.networks.contract import Network


def inherit(wish: Network, networks: Iterable[Network]) -> Network:
    """The wish with the settings that it takes from another network. Raises NotFound, Forbidden (it has settings of its own)."""
    if not wish.config_from:
        return wish
    if wish.config_only:
        raise Forbidden("a configuration network cannot depend on another configuration network")
    source = next((each for each in networks if each.config_only and each.name == wish.config_from), None)
    if source is None:
        raise NotFound(f'configuration network "{wish.config_from}" does not exist', kind="network")
    if wish.ranges or wish.subnet or wish.ipam_options or wish.ipv6:
        raise Forbidden(
            "user specified configurations are not supported if the network depends on a configuration network"
        )
    if wish.options:
        raise Forbidden("network driver options are not supported if the network depends on a configuration network")
    return msgspec.structs.replace(
        wish,
        ranges=source.ranges,
        ipam_options=source.ipam_options,
        ipv6=source.ipv6,
        options=source.options,
        labels=source.labels | wish.labels,
    )


def check_unused(network: Network, networks: Iterable[Network]) -> None:
    """Raises Forbidden when settings are to go that another network has taken."""
    if network.config_only and any(each.config_from == network.name for each in networks):
        raise Forbidden(f'error while removing network: configuration network "{network.name}" is in use')
