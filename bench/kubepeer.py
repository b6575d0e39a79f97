"""The peer of the Kubernetes door: a private etcd, kube-apiserver and kube-scheduler, where these programs are on the path (or
in the folder that INSULA_BENCH_PEERS names). No distribution packages them; a user who has them gets them measured."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path

from bench.api import Api, Server
from bench.commands import CommandError, run, until

PROGRAMS = ("etcd", "kube-apiserver", "kube-scheduler")
SECONDS = 60.0


def find(name: str) -> str | None:
    """A program of the peer."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("INSULA_BENCH_PEERS", ""), os.environ["PATH"])))


def missing() -> str:
    """Which program is absent, or an empty text."""
    return next((name for name in PROGRAMS if find(name) is None), "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class KubePeer:
    """`start`, use, `stop`. The scheduler is started on its own, with `start_scheduler`."""

    name = "kube-apiserver"

    def __init__(self, root: Path) -> None:
        self.root = root
        self._processes: list[subprocess.Popen[bytes]] = []
        self._etcd, self._peer, self._port = _free_port(), _free_port(), _free_port()
        self._token = secrets.token_hex(16)
        root.mkdir(parents=True)

    @property
    def pids(self) -> list[int]:
        """All of its processes."""
        return [process.pid for process in self._processes]

    def server(self) -> Server:
        """Where it is."""
        return Server("127.0.0.1", self._port, str(self.root / "apiserver.crt"), token=self._token)

    def version(self) -> str:
        """As it says itself."""
        program = find("kube-apiserver")
        assert program is not None
        return run([program, "--version"]).decode().split()[-1]

    def start(self) -> None:
        """Until /readyz answers."""
        (self.root / "tokens.csv").write_text(f"{self._token},admin,admin,system:masters\n")
        run(["openssl", "genrsa", "-out", str(self.root / "sa.key"), "2048"])
        self._spawn("etcd", *self.etcd_arguments())
        self._spawn("kube-apiserver", *self.apiserver_arguments())
        try:
            until(self._ready, "a ready kube-apiserver", deadline_s=SECONDS, every_s=0.2)
        except BaseException:
            self.stop()
            raise

    def etcd_arguments(self) -> list[str]:
        """etcd with its defaults, which flush every write to the disk."""
        clients, peers = f"http://127.0.0.1:{self._etcd}", f"http://127.0.0.1:{self._peer}"
        return [
            *("--data-dir", str(self.root / "etcd"), "--log-level", "error"),
            *("--listen-client-urls", clients, "--advertise-client-urls", clients),
            *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
            *("--initial-cluster", f"default={peers}", "--quota-backend-bytes", "8589934592"),
        ]

    def apiserver_arguments(self) -> list[str]:
        """One API server over TLS with RBAC and tokens. Admission that needs controllers, which do not run here, is off."""
        key = str(self.root / "sa.key")
        return [
            *("--etcd-servers", f"http://127.0.0.1:{self._etcd}", "--secure-port", str(self._port)),
            *("--bind-address", "127.0.0.1", "--cert-dir", str(self.root), "--authorization-mode", "RBAC"),
            *("--token-auth-file", str(self.root / "tokens.csv"), "--service-cluster-ip-range", "10.96.0.0/16"),
            *("--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", key),
            *("--service-account-signing-key-file", key, "--api-audiences", "kubernetes"),
            *("--disable-admission-plugins", "ServiceAccount,TaintNodesByCondition"),
            *("--max-requests-inflight", "4000", "--max-mutating-requests-inflight", "2000"),
            *("--enable-priority-and-fairness=false",),
        ]

    def start_scheduler(self) -> None:
        """kube-scheduler without its client's default limit of 50 requests per second, scoring every node."""
        server = self.server()
        kubeconfig, config = self.root / "scheduler.kubeconfig", self.root / "scheduler.yaml"
        kubeconfig.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
            f"clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{server.port}', insecure-skip-tls-verify: true}}}}]\n"
            f"users: [{{name: u, user: {{token: '{server.token}'}}}}]\n"
            "contexts: [{name: c, context: {cluster: c, user: u}}]\n"
        )
        config.write_text(
            "apiVersion: kubescheduler.config.k8s.io/v1beta1\nkind: KubeSchedulerConfiguration\n"
            "leaderElection: {leaderElect: false}\npercentageOfNodesToScore: 100\n"
            f"clientConnection: {{kubeconfig: '{kubeconfig}', qps: 10000, burst: 10000}}\n"
        )
        self._spawn("kube-scheduler", "--config", str(config), "--secure-port", str(_free_port()), "--port", "0")

    def stop_scheduler(self) -> None:
        """End the scheduler, which was started last."""
        self._end(self._processes.pop())

    def _spawn(self, name: str, *arguments: str) -> None:
        program = find(name)
        assert program is not None
        argv = ["setpriv", "--pdeathsig", "TERM", program, *arguments]
        with (self.root / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.root)
            )

    def _ready(self) -> bool:
        for process in self._processes:
            if process.poll() is not None:
                logs = "\n".join(path.read_text(errors="replace")[-800:] for path in self.root.glob("*.log"))
                raise CommandError(f"{process.args} ended with code {process.returncode}: {logs}")  # type: ignore[str-bytes-safe]
        try:
            api = Api(self.server())
            api.call("GET", "/readyz")
            api.call("GET", "/api/v1/namespaces/default")
        except (OSError, RuntimeError):
            return False
        return True

    def stop(self) -> None:
        """End all, the last started first."""
        while self._processes:
            self._end(self._processes.pop())

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
