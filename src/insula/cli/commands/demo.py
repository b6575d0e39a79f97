"""insula demo: one container, one Deployment and one virtual machine, each through its own door, on one network."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click

from insula.cli import daemon, demoimages, doors, workloads
from insula.cli.main import current, root_option
from insula.cli.output import print_table
from insula.cli.paths import Paths
from insula.errors import AlreadyExists, DeadlineExceeded, HostFault, NotFound

BUSYBOX = "insula/busybox:latest"
CONTAINER = "demo-container"
SERVE = "mkdir -p /www && echo hello from $(hostname) > /www/index.html && exec httpd -f -p 80 -h /www"
DEPLOYMENT = "/apis/apps/v1/namespaces/default/deployments"
MACHINE = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
INSTANCE = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/demo-machine"
WAIT_S = 120.0


def deployment() -> dict[str, Any]:
    """The Deployment of the demo."""
    container = {
        "name": "web",
        "image": BUSYBOX,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", SERVE],
        "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1},
    }
    labels = {"app": "demo"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "demo-deployment"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
            },
        },
    }


def machine() -> dict[str, Any]:
    """The virtual machine of the demo."""
    image = {"image": demoimages.MACHINE, "imagePullPolicy": "IfNotPresent", "kernelPath": "/boot/vmlinuz"}
    boot = {"kernelArgs": "console=ttyS0", "container": {**image, "initrdPath": "/boot/initrd"}}
    domain = {
        "memory": {"guest": "256Mi"},
        "devices": {"interfaces": [{"name": "default", "bridge": {}}]},
        "firmware": {"kernelBoot": boot},
    }
    spec = {"domain": domain, "networks": [{"name": "default", "pod": {}}], "terminationGracePeriodSeconds": 10}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "demo-machine"},
        "spec": {"runStrategy": "Always", "template": {"spec": spec}},
    }


@click.command("demo")
@root_option
@click.pass_context
def COMMAND(ctx: click.Context) -> None:  # noqa: N802
    """Run the demo: a container, a Deployment and a virtual machine that reach each other. Repeatable."""
    asyncio.run(_demo(current(ctx)))


async def _demo(paths: Paths) -> None:
    serving = daemon.need_running(paths)
    async with doors.docker(paths) as docker, doors.kubernetes(paths) as kubernetes:
        await demoimages.add_busybox(docker)
        await demoimages.add_machine(docker, paths, _say)
        await _container(docker)
        for path, wish in ((DEPLOYMENT, deployment()), (MACHINE, machine())):
            try:
                await kubernetes.call("POST", path, wish)
            except AlreadyExists:
                continue
        address = await _ready(kubernetes)
        await _reach(docker, address)
        rows = [row for row in await workloads.rows(docker, kubernetes) if "demo" in row["name"]]
    print_table(rows, ("kind", "name", "state", "address", "door"))
    _next_steps(paths, serving)


def _say(text: str) -> None:
    click.echo(text, err=True)


async def _container(docker: doors.Door) -> None:
    """Start the container through the Docker door, unless it runs already."""
    wish = {"Image": BUSYBOX, "Cmd": ["sh", "-c", SERVE], "HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}}}
    try:
        await docker.call("GET", f"/containers/{CONTAINER}/json")
    except NotFound:
        await docker.call("POST", f"/containers/create?name={CONTAINER}", wish)
    await docker.call("POST", f"/containers/{CONTAINER}/start")


async def _ready(kubernetes: doors.Door) -> str:
    """Wait for the Deployment and the machine. Returns the machine's address. Raises DeadlineExceeded."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        status = (await kubernetes.call("GET", f"{DEPLOYMENT}/demo-deployment")).get("status") or {}
        try:
            found = (await kubernetes.call("GET", INSTANCE)).get("status") or {}
        except NotFound:
            found = {}
        address = next((i.get("ipAddress", "") for i in found.get("interfaces") or ()), "")
        if status.get("availableReplicas") == 2 and found.get("phase") == "Running" and address:
            return str(address)
        await asyncio.sleep(0.2)
    raise DeadlineExceeded(f"the demo was not ready within {WAIT_S:.0f} s", hint="see what waits: insula status")


async def _reach(docker: doors.Door, address: str) -> None:
    """Fetch the machine's page from inside of the container, through an exec of the Docker door."""
    command = ["wget", "-q", "-O", "-", f"http://{address}/"]
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        made = await docker.call("POST", f"/containers/{CONTAINER}/exec", {"Cmd": command, "AttachStdout": True})
        async with docker.session.post(f"{docker.base}/exec/{made['Id']}/start", json={"Detach": False}) as answer:
            await answer.read()
        if (await docker.call("GET", f"/exec/{made['Id']}/json"))["ExitCode"] == 0:
            return
        await asyncio.sleep(0.5)
    raise HostFault(f"the demo machine at {address} does not answer the demo container")


def _next_steps(paths: Paths, serving: daemon.Serving) -> None:
    root = f" --root {paths.root}" if paths.root else ""
    click.echo()
    click.echo(f"Docker socket  {serving.docker}")
    click.echo(f"Kubernetes     {serving.api}, kubeconfig {paths.kubeconfig}")
    click.echo()
    click.echo("Try next:")
    click.echo(f"  DOCKER_HOST=unix://{serving.docker} docker run --rm -it busybox sh")
    click.echo(f"  KUBECONFIG={paths.kubeconfig} kubectl get pods,vms -A")
    click.echo(f"  insula vm console demo-machine{root}      (leave with Ctrl-])")
