"""A real Kubernetes door on a free port, with real clients: what the tests of this door share."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from insula.api.kube.app import make_app, serve_tls
from insula.api.kube.authn import Authority
from insula.api.kube.context import Agents
from insula.api.kube.pki import Pki, kubeconfig
from insula.kinds.registry import Registry
from insula.store.contract import Store
from insula.store.memory import MemoryStore
from insula.tasks import in_thread
from insula.verbs.verbs import Verbs

Registry.builtin()  # imports the files of kinds here, not in a test's event loop
KUBECTL = shutil.which("kubectl", path=f"{Path(os.sys.executable).parent}:{os.environ['PATH']}") or "kubectl"  # type: ignore[attr-defined]


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Cluster:
    """A running door with its client settings."""

    folder: Path
    url: str
    verbs: Verbs
    registry: Registry
    authority: Authority
    pki: Pki
    config: Path
    env: dict[str, str] = field(default_factory=dict)

    async def kubectl(
        self, *args: str, stdin: str | dict[str, Any] | None = None, check: bool = True, timeout: float = 60
    ) -> Ran:
        """Run kubectl as the administrator."""
        data = None
        if stdin is not None:
            data = (stdin if isinstance(stdin, str) else json.dumps(stdin)).encode()
        process = await asyncio.create_subprocess_exec(
            KUBECTL,
            *args,
            env=self.env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(timeout):
                out, err = await process.communicate(data)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        ran = Ran(process.returncode or 0, out.decode(), err.decode())
        if check:
            assert ran.code == 0, f"kubectl {' '.join(args)} exited {ran.code}: {ran.err}{ran.out}"
        return ran

    async def apply(self, *objects: dict[str, Any]) -> Ran:
        """kubectl apply."""
        return await self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def write_config(self, name: str, user: str, groups: tuple[str, ...] = ()) -> Path:
        """A kubeconfig of another user, with a certificate."""
        path = self.folder / f"{name}.conf"
        path.write_text(kubeconfig(self.url, self.pki.ca_pem, self.pki.issue(user, groups), user=user))
        return path


@asynccontextmanager
async def cluster(folder: Path, *, store: Store | None = None, agents: Agents | None = None) -> AsyncIterator[Cluster]:
    """Start a door; stop it at the end of the block."""
    pki = await in_thread(Pki, folder / "pki")
    registry = Registry.builtin()
    owned = store or MemoryStore()
    verbs = Verbs(owned, registry)
    authority = Authority(pki)
    app = make_app(verbs, registry, authority, **({"agents": agents} if agents else {}))
    served = await serve_tls(app, "127.0.0.1", 0, pki.server_context())
    try:
        url = f"https://127.0.0.1:{served.port}"
        config = pki.write_kubeconfig(url)
        env = {"HOME": str(folder), "KUBECONFIG": str(config), "PATH": os.environ["PATH"]}
        yield Cluster(folder, url, verbs, registry, authority, pki, config, env)
    finally:
        await served.close()
        await owned.close()
