"""insula vm: virtual machines: make, list, start, stop, watch and enter them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from insula.cli import machines, vms
from insula.cli.main import current, root_option
from insula.cli.output import dump, output_option, print_table, show
from insula.cli.paths import Paths
from insula.errors import Invalid, NotFound

T = TypeVar("T")
COLUMNS = ("name", "status", "ready", "address", "cpus", "memory", "accelerator", "age")
IMAGE = "insula/linux:latest"

namespace_option = click.option("--namespace", "-n", default="default", show_default=True, help="Its namespace.")
wait_option = click.option("--wait", is_flag=True, help="Return when it is done, not when it is asked for.")


@click.group("vm")
def COMMAND() -> None:  # noqa: N802
    """Virtual machines: KubeVirt's VirtualMachines, as virtctl and kubectl see them.

    \b
    insula vm create demo                                       the demo image, 512 MiB, one CPU
    insula vm create web --image registry.example/debian:12 --memory 2Gi --cpus 2 --cloud-init user-data.yaml
    insula vm create web --dry-run -o yaml                      the manifest, for kubectl apply
    insula vm console demo                                      leave with Ctrl-]
    insula vm list
    """


def _run(ctx: click.Context, work: Callable[[Any], Awaitable[T]]) -> T:
    """Run work that needs the Kubernetes door."""
    from insula.cli import doors

    async def with_door(paths: Paths) -> T:
        async with doors.kubernetes(paths) as door:
            return await work(door)

    return asyncio.run(with_door(current(ctx)))


def complete_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of machines, for the shell; none when Insula does not answer."""
    from insula.cli import daemon, doors
    from insula.cli.paths import paths_of

    paths = paths_of(ctx.params.get("root") or ctx.find_root().params.get("root"))

    async def names() -> list[str]:
        async with doors.kubernetes(paths) as door:
            found = await door.call("GET", vms.collection(vms.MACHINES, ctx.params.get("namespace") or "default"))
            return [item["metadata"]["name"] for item in found["items"]]

    with contextlib.suppress(Exception):
        running = daemon.serving(paths)
        if running is not None and running.ready:
            return [name for name in asyncio.run(names()) if name.startswith(incomplete)]
    return []


name_argument = click.argument("name", shell_complete=complete_names)


@COMMAND.command("create")
@click.argument("name")
@click.option("--image", default=IMAGE, show_default=True, help="A containerDisk image, or one with a kernel inside.")
@click.option("--memory", default="512Mi", show_default=True, help="What the guest sees.")
@click.option("--cpus", type=click.IntRange(1, 512), default=1, show_default=True, help="How many it sees.")
@click.option("--cloud-init", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="User data, a file.")
@click.option("--disk", is_flag=True, help="Boot from the image's disk even where its labels name a kernel.")
@click.option("--kernel", metavar="PATH", default="", help="Boot this kernel of the image directly.")
@click.option("--initrd", metavar="PATH", default="", help="With this initial RAM disk of the image.")
@click.option("--kernel-args", metavar="TEXT", default="", help="And this command line.")
@click.option("--start/--no-start", default=True, show_default=True, help="Whether it is to run.")
@click.option("--dry-run", is_flag=True, help="Only print what would be created.")
@wait_option
@namespace_option
@output_option
@root_option
@click.pass_context
def create(ctx: click.Context, /, name: str, output: str, wait: bool, dry_run: bool, **asked: Any) -> None:
    """Make a machine from an image.

    An image holds either a disk file in /disk (KubeVirt's containerDisk) or a kernel; which one is told by the image's
    labels, or by --disk and --kernel.

    \b
    insula vm create demo --wait
    insula vm create demo --cloud-init user-data.yaml --no-start
    insula vm create demo --dry-run -o yaml | kubectl apply -f -
    """
    if asked["disk"] and asked["kernel"]:
        raise click.UsageError("--disk and --kernel exclude each other")
    if (asked["initrd"] or asked["kernel_args"]) and not asked["kernel"]:
        raise click.UsageError("--initrd and --kernel-args go with --kernel")
    wish = machines.Wish(
        name=name,
        image=asked["image"],
        namespace=asked["namespace"],
        memory=asked["memory"],
        cpus=asked["cpus"],
        boot=_boot(current(ctx), dry_run, asked),
        user_data=_read(asked["cloud_init"]) if asked["cloud_init"] else "",
        start=asked["start"],
    )
    if dry_run:
        _print_manifests(machines.manifests(wish), output)
        return

    async def work(door: Any) -> dict[str, Any]:
        made = await vms.create(door, wish)
        if wait and wish.start:
            await vms.until_running(door, name, wish.namespace)
        return made

    made = _run(ctx, work)
    if output != "table":
        dump(made, output)
        return
    click.echo(f"{name} is made" + (" and runs." if wait and wish.start else " and starts." if wish.start else "."))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as fault:
        raise Invalid(f"{path} is not a text", hint="cloud-init's user data is YAML or a script") from fault


def _boot(paths: Paths, dry_run: bool, asked: dict[str, Any]) -> machines.Boot:
    """What the user said, else what the image's labels say where this node has the image, else its disk."""
    if asked["kernel"] or asked["disk"]:
        return machines.Boot(kernel=asked["kernel"], initrd=asked["initrd"], arguments=asked["kernel_args"])
    from insula.cli import daemon

    if dry_run and daemon.serving(paths) is None:
        from insula.images import machine as demo

        return machines.boot_of(demo.CONFIG["Labels"] if asked["image"] == demo.NAME else {})
    return asyncio.run(vms.labelled(paths, asked["image"]))


def _print_manifests(manifests: list[dict[str, Any]], output: str) -> None:
    if output == "json":
        dump(manifests[0] if len(manifests) == 1 else {"apiVersion": "v1", "kind": "List", "items": manifests}, "json")
        return
    for index, manifest in enumerate(manifests):
        if index:
            click.echo("---")
        dump(manifest, "yaml")


@COMMAND.command("list")
@click.option("--all-namespaces", "-A", is_flag=True, help="Of every namespace.")
@namespace_option
@output_option
@root_option
@click.pass_context
def list_machines(ctx: click.Context, all_namespaces: bool, namespace: str, output: str) -> None:
    """List machines.

    \b
    insula vm list --all-namespaces
    insula vm list -o json
    """
    where = "" if all_namespaces else namespace

    async def work(door: Any) -> list[dict[str, Any]]:
        made = await door.call("GET", vms.collection(vms.MACHINES, where))
        running = await door.call("GET", vms.collection(vms.INSTANCES, where))
        return machines.rows(made["items"], running["items"])

    show(_run(ctx, work), ("namespace", *COLUMNS) if all_namespaces else COLUMNS, output)


@COMMAND.command("show")
@name_argument
@namespace_option
@output_option
@root_option
@click.pass_context
def show_machine(ctx: click.Context, name: str, namespace: str, output: str) -> None:
    """Show one machine: what it is, where it is, and what it waits for."""

    async def work(door: Any) -> dict[str, Any]:
        made = await vms.get(door, vms.MACHINES, name, namespace)
        if made is None:
            raise NotFound(f'there is no machine "{name}" in the namespace {namespace}')
        instance = await vms.get(door, vms.INSTANCES, name, namespace)
        query = f"fieldSelector=involvedObject.name%3D{name}"
        events = await door.call("GET", f"/api/v1/namespaces/{namespace}/events?{query}")
        return {"virtualMachine": made, "instance": instance, "events": events["items"]}

    found = _run(ctx, work)
    if output != "table":
        dump(found, output)
        return
    row = machines.row(found["virtualMachine"], found["instance"])
    row["problem"] = machines.trouble(found["virtualMachine"], found["instance"])
    print_table([{"field": field, "value": value} for field, value in row.items()], ("field", "value"))
    if found["events"]:
        click.echo()
        print_table(
            [machines.event_row(event) for event in found["events"][-10:]], ("age", "type", "reason", "message")
        )


@COMMAND.command("start")
@name_argument
@click.option("--paused", is_flag=True, help="With its CPUs stopped; go on with: insula vm unpause")
@wait_option
@namespace_option
@root_option
@click.pass_context
def start(ctx: click.Context, name: str, paused: bool, wait: bool, namespace: str) -> None:
    """Let a machine run."""

    async def work(door: Any) -> None:
        await door.call("PUT", vms.subresource(vms.MACHINES, name, namespace, "start"), {"paused": paused})
        if wait:
            await vms.until_running(door, name, namespace)

    _run(ctx, work)
    click.echo(f"{name} runs." if wait else f"{name} starts.")


@COMMAND.command("stop")
@name_argument
@click.option("--force", is_flag=True, help="Pull the plug instead of pressing the power button.")
@wait_option
@namespace_option
@root_option
@click.pass_context
def stop(ctx: click.Context, name: str, force: bool, wait: bool, namespace: str) -> None:
    """Stop a machine, by its power button; when it does not obey within its grace period, by its plug."""

    async def work(door: Any) -> None:
        instances = vms.collection(vms.INSTANCES, namespace)
        options = {"gracePeriod": 0} if force else {}
        await door.call("PUT", vms.subresource(vms.MACHINES, name, namespace, "stop"), options)
        if force:
            with contextlib.suppress(NotFound):
                await door.call("DELETE", f"{instances}/{name}", {"gracePeriodSeconds": 0})
        if wait:
            await door.until(instances, name, lambda found: found is None, vms.WAIT_S)

    _run(ctx, work)
    click.echo(f"{name} is stopped." if wait else f"{name} stops.")


def _power(verb: str, kind: str, done: str, about: str) -> None:
    """One command that is one request."""

    @COMMAND.command(verb, help=about)
    @name_argument
    @namespace_option
    @root_option
    @click.pass_context
    def command(ctx: click.Context, name: str, namespace: str) -> None:
        _run(ctx, lambda door: door.call("PUT", vms.subresource(kind, name, namespace, verb), {}))
        click.echo(f"{name} {done}.")


_power("restart", vms.MACHINES, "restarts", "Stop a machine and start it again, on new hardware.")
_power("pause", vms.INSTANCES, "is paused", "Stop a machine's CPUs; it keeps its memory.")
_power("unpause", vms.INSTANCES, "goes on", "Let the CPUs of a paused machine go on.")
_power("reset", vms.INSTANCES, "is reset", "Press a machine's reset button; the guest is not asked.")


@COMMAND.command("delete")
@click.argument("names", nargs=-1, required=True, shell_complete=complete_names)
@click.option("--force", is_flag=True, help="Pull the plug instead of pressing the power button.")
@wait_option
@namespace_option
@root_option
@click.pass_context
def delete(ctx: click.Context, names: tuple[str, ...], force: bool, wait: bool, namespace: str) -> None:
    """Delete machines with all that was on their disks."""

    async def work(door: Any) -> None:
        instances = vms.collection(vms.INSTANCES, namespace)
        for name in names:
            try:
                await door.call("DELETE", f"{vms.collection(vms.MACHINES, namespace)}/{name}")
            except NotFound:
                await door.call("DELETE", f"{instances}/{name}")  # one that was made without a VirtualMachine
            if force:
                with contextlib.suppress(NotFound):
                    await door.call("DELETE", f"{instances}/{name}", {"gracePeriodSeconds": 0})
        for name in names if wait else ():
            await door.until(instances, name, lambda found: found is None, vms.WAIT_S)

    _run(ctx, work)
    for name in names:
        click.echo(f"{name} is deleted.")


@COMMAND.command("console")
@name_argument
@click.option(
    "--linger", default=2.0, show_default=True, help="Seconds of silence to wait for after the end of a pipe."
)
@namespace_option
@root_option
@click.pass_context
def console(ctx: click.Context, name: str, linger: float, namespace: str) -> None:
    """Enter a machine's serial console; leave with Ctrl-]. Waits for a machine that is just starting.

    \b
    insula vm console demo
    printf 'root\\nuname -a\\n' | insula vm console demo
    """
    from insula.cli import console as serial

    async def work(door: Any) -> str:
        await vms.until_running(door, name, namespace)
        click.echo(f"connected to {name}; leave with Ctrl-], press Enter for a prompt", err=True)
        return await serial.attach(door, vms.subresource(vms.INSTANCES, name, namespace, "console"), linger)

    ended = _run(ctx, work)
    click.echo(f"\n{name} has closed its serial line" if ended == "line" else f"\nleft {name}", err=True)


@COMMAND.command("vnc")
@name_argument
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Listen there; 0 takes any free port.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Listen on this address.")
@namespace_option
@output_option
@root_option
@click.pass_context
def vnc(ctx: click.Context, name: str, port: int, address: str, namespace: str, output: str) -> None:
    """Serve a machine's screen to a VNC viewer on a local port, until Ctrl-C. Who reaches the port reaches the screen.

    \b
    insula vm vnc demo --port 5900
    """
    from insula.cli import console as serial

    async def work(door: Any) -> None:
        await vms.until_running(door, name, namespace)
        path = vms.subresource(vms.INSTANCES, name, namespace, "vnc")
        async with serial.vnc_listener(door, path, address, port) as taken:
            if output == "table":
                click.echo(f"The screen of {name} is at {address}:{taken}; open it with: vncviewer {address}::{taken}")
            else:
                dump({"port": taken}, output)
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        _run(ctx, work)
