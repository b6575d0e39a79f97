"""Where everything lives: the fixed points on a machine, and the same under one folder with `--root DIR`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from msgspec import Struct


class Paths(Struct, frozen=True, kw_only=True):
    """The fixed points. `root` is empty for the machine's own Insula."""

    root: str
    data: Path
    run: Path
    config: Path

    @property
    def docker_socket(self) -> Path:
        """The Docker Engine API."""
        return self.run / "docker.sock"

    @property
    def agent_socket(self) -> Path:
        """The node agent's endpoint for byte streams."""
        return self.run / "agent.sock"

    @property
    def lock(self) -> Path:
        """Held locked by the running daemon; holds its pid and what it serves, as JSON."""
        return self.run / "insula.lock"

    @property
    def log(self) -> Path:
        """The daemon's own log when it was detached."""
        return self.data / "log" / "insula.log"

    @property
    def port(self) -> Path:
        """The API's port that was taken last, where no setting fixes it."""
        return self.data / "api-port"

    @property
    def unit(self) -> Path:
        """The systemd unit that `insula install` writes."""
        name = "insula" if not self.root else f"insula-{self._digest[:8]}"
        return Path("/etc/systemd/system") / f"{name}.service"

    @property
    def pki(self) -> Path:
        """The CA, certificates and keys."""
        return self.data / "pki"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.data / "admin.kubeconfig"

    @property
    def state(self) -> Path:
        """The store of the cluster tower."""
        return self.data / "state.db"

    @property
    def prefix(self) -> str:
        """What the names of this Insula's interfaces begin with: `ins`, or letters derived from the root."""
        return "ins" if not self.root else "i" + self._digest[:4]

    @property
    def table(self) -> str:
        """The name of this Insula's nftables table."""
        return "insula" if not self.root else f"insula_{self._digest[:8]}"

    @property
    def cgroup(self) -> str:
        """The parent cgroup of everything that this Insula runs."""
        return "insula" if not self.root else f"insula-{self._digest[:8]}"

    @property
    def _digest(self) -> str:
        return hashlib.sha256(self.root.encode()).hexdigest()


def paths_of(root: str | None) -> Paths:
    """The machine's own paths, or all of them below `root`."""
    if not root:
        return Paths(
            root="", data=Path("/var/lib/insula"), run=Path("/run/insula"), config=Path("/etc/insula/config.yaml")
        )
    base = Path(root).resolve()
    return Paths(root=str(base), data=base / "data", run=base / "run", config=base / "config.yaml")
