"""A virtual machine through the API alone, as kubectl and virtctl ask for it: a manifest, the subresources' answers, the serial
line over a WebSocket; and a pod and the machine reach each other."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml

from door.cli_support import Home
from door.cluster_support import KUBECTL, container, deployment, pod, until
from host.vm_support import demo_machine

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.may_block]
NAME = "guest"
SUBRESOURCES = "/apis/subresources.kubevirt.io/v1"
GROUP = f"{SUBRESOURCES}/namespaces/default"
INSTANCE = f"{GROUP}/virtualmachineinstances/{NAME}"
MACHINE = f"{GROUP}/virtualmachines/{NAME}"


def machine(**spec: Any) -> dict[str, Any]:
    """A VirtualMachine as a KubeVirt user writes it."""
    kernel = {
        "image": "insula/linux:latest",
        "imagePullPolicy": "IfNotPresent",
        "kernelPath": "/boot/vmlinuz",
        "initrdPath": "/boot/initrd",
    }
    domain = {
        "memory": {"guest": "192Mi"},
        "devices": {"interfaces": [{"name": "default", "masquerade": {}}], "rng": {}},
        "firmware": {"kernelBoot": {"container": kernel, "kernelArgs": "console=ttyS0 quiet"}},
    }
    template = {
        "metadata": {"labels": {"kubevirt.io/domain": NAME}},
        "spec": {"domain": domain, "networks": [{"name": "default", "pod": {}}]},
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": NAME},
        "spec": {"runStrategy": "Always", "template": template, **spec},
    }


class Place:
    """An Insula with the demo images and kubectl for it."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.config = home.folder / "kubeconfig"
        self.config.write_text(home.ok("kubeconfig"))
        cluster = yaml.safe_load(self.config.read_text())
        self.url = cluster["clusters"][0]["cluster"]["server"]
        self.token = self.kubectl("create", "token", "default").strip()
        admin = ("--clusterrole=cluster-admin", "--serviceaccount=default:default")
        self.kubectl("create", "clusterrolebinding", "all", *admin)

    def kubectl(self, *words: str, stdin: Any = None, check: bool = True) -> str:
        env = {**self.home.env, "KUBECONFIG": str(self.config), "HOME": str(self.home.folder)}
        text = None if stdin is None else json.dumps(stdin)
        done = subprocess.run([KUBECTL, *words], input=text, capture_output=True, text=True, timeout=90, env=env)
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr, self.home.log()[-3000:])
        return done.stdout + ("" if done.returncode == 0 else done.stderr)

    def instance(self) -> dict[str, Any]:
        found = self.kubectl("get", "vmi", NAME, "-o", "json", "--ignore-not-found")
        answer: dict[str, Any] = json.loads(found) if found else {}
        return answer

    def phase(self) -> str:
        return str((self.instance().get("status") or {}).get("phase", "gone"))

    def address(self) -> str:
        cards = self.instance().get("status", {}).get("interfaces") or [{}]
        return str(cards[0].get("ipAddress", ""))

    @staticmethod
    def tls() -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    @asynccontextmanager
    async def line(self, path: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket as virtctl opens it."""
        headers = {"Authorization": f"Bearer {self.token}"}
        connector = aiohttp.TCPConnector(ssl=self.tls())
        session = aiohttp.ClientSession(self.url, headers=headers, connector=connector)
        async with session, session.ws_connect(path, protocols=("plain.kubevirt.io",)) as opened:
            assert opened.protocol == "plain.kubevirt.io"
            yield opened
        await asyncio.sleep(0.1)  # until the end of TLS is said

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """What virtctl does: bare JSON or nothing, without a content type. The status and the answer."""
        address = urlsplit(self.url).netloc
        connection = http.client.HTTPSConnection(address, context=self.tls(), timeout=30)
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json, */*"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else {}
        finally:
            connection.close()

    def put(self, path: str, body: Any = None) -> tuple[int, str]:
        """A deed: status and message."""
        status, answer = self.ask("PUT", path, body)
        return status, answer.get("message", "")

    def get(self, path: str) -> tuple[int, Any]:
        return self.ask("GET", path)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    cache = demo_machine().kernel.parent.parent
    home = Home()
    try:
        home.paths.data.mkdir(parents=True)
        (home.paths.data / "cache").symlink_to(cache)
        home.ok("up", "--detach")
        home.ok("image", "demo")
        made = Place(home)
        made.kubectl("apply", "-f", "-", stdin=machine())
        until(lambda: made.phase() == "Running" and made.address(), 90)
        yield made
    finally:
        home.destroy()


def web(name: str) -> dict[str, Any]:
    script = f"mkdir /www; echo I am {name} > /www/index.html; httpd -p 80 -h /www; trap exit TERM; sleep 10000 & wait"
    return {**container("c", script), "image": "insula/busybox:latest", "imagePullPolicy": "IfNotPresent"}


async def shell(place: Place, *commands: tuple[str, str]) -> None:
    """Type commands at the guest's serial line until each has shown what it must."""
    async with place.line(f"{INSTANCE}/console") as line:
        await _until(line, "\n", "login: ", "# ")
        await _until(line, "root\n", "# ")
        for command, shows in commands:
            await _until(line, f"{command}\n", shows)


async def _until(line: aiohttp.ClientWebSocketResponse, keys: str, *wanted: str) -> None:
    """Press keys, again every five seconds, until one of these texts shows."""
    seen = ""
    for _ in range(12):
        await line.send_bytes(keys.encode())
        try:
            async with asyncio.timeout(5):
                while not any(text in seen for text in wanted):
                    message = await line.receive()
                    assert message.type is aiohttp.WSMsgType.BINARY, (message, seen)
                    seen += message.data.decode(errors="replace")
            return
        except TimeoutError:
            continue
    raise AssertionError(f"none of {wanted} after {keys!r}: {seen!r}")


def test_a_pod_and_the_machine_reach_each_other(place: Place) -> None:
    place.kubectl("apply", "-f", "-", stdin=pod("web", web("a pod")))
    place.kubectl("wait", "pod/web", "--for=condition=Ready", "--timeout=40s")
    address = place.kubectl("get", "pod", "web", "-o", "jsonpath={.status.podIP}")
    guest = place.address()
    page = until(lambda: "terminated with exit" not in (said := _page(place, guest)) and said, 60)
    assert page
    assert " 0% packet loss" in place.kubectl("exec", "web", "--", "ping", "-c", "2", guest)
    commands = (
        (f"wget -qO- http://{address}/ | sed s/pod/POD/", "I am a POD"),
        (f"ping -c 1 {address} | sed s/received/RECEIVED/", "1 packets RECEIVED"),
    )
    asyncio.run(shell(place, *commands))


def _page(place: Place, address: str) -> str:
    return place.kubectl("exec", "web", "--", "wget", "-qO-", f"http://{address}/", check=False)


def test_what_virtctl_asks_of_a_running_machine(place: Place) -> None:
    assert place.put(f"{MACHINE}/start", {}) == (409, "VM is already running")
    assert place.put(f"{INSTANCE}/unpause", {}) == (409, "VMI is not paused")
    assert place.put(f"{INSTANCE}/pause", {"dryRun": ["All"]})[0] == 202
    assert place.put(f"{INSTANCE}/pause")[0] == 202
    until(lambda: place.put(f"{INSTANCE}/pause", {}) == (409, "VMI is already paused"))
    assert place.put(f"{INSTANCE}/softreboot") == (409, "VMI is paused")
    assert place.put(f"{INSTANCE}/unpause", {})[0] == 202
    assert place.put(f"{MACHINE}/restart", {"gracePeriodSeconds": 5})[0] == 400
    status, told = place.put(f"{MACHINE}/migrate", {})
    assert status >= 400 and "is not supported by this server" in told
    assert place.put(f"{GROUP}/virtualmachines/none/start", {})[0] == 404
    assert place.put(f"{MACHINE}/start", [1])[0] == 400
    status, group = place.get("/apis/subresources.kubevirt.io")
    assert (status, group["kind"], group["preferredVersion"]["version"]) == (200, "APIGroup", "v1")
    status, version = place.get(f"{SUBRESOURCES}/version")
    assert status == 200 and version["gitVersion"].startswith("v")
    assert place.get(f"{GROUP}/virtualmachineinstances/none/console")[0] == 404


def test_the_screen_and_a_port_over_websockets(place: Place) -> None:
    async def look() -> None:
        async with place.line(f"{INSTANCE}/vnc") as screen:
            assert (await screen.receive_bytes(timeout=20)).startswith(b"RFB 003.")
        async with place.line(f"{MACHINE}/portforward/80/tcp") as port:
            await port.send_bytes(b"GET / HTTP/1.0\r\n\r\n")
            assert (await port.receive_bytes(timeout=20)).startswith(b"HTTP/1.")

    asyncio.run(look())


def test_stopping_and_starting_by_subresource_and_by_manifest(place: Place) -> None:
    first = place.instance()["metadata"]["uid"]
    assert place.put(f"{MACHINE}/restart", {"gracePeriodSeconds": 0}) == (202, "")
    until(lambda: place.phase() == "Running" and place.instance()["metadata"]["uid"] != first, 90)
    assert place.put(f"{MACHINE}/stop", {"gracePeriod": 0}) == (202, "")
    until(lambda: place.phase() == "gone", 60)
    assert place.put(f"{MACHINE}/stop", {}) == (409, "VM is not running")
    assert place.put(f"{INSTANCE}/pause", {})[0] == 404
    assert place.put(f"{MACHINE}/restart", {}) == (409, "RunStategy Halted does not support manual restart requests")
    assert "Stopped" in place.kubectl("get", "vm", NAME)
    assert place.put(f"{MACHINE}/start") == (202, "")
    until(lambda: place.phase() == "Running", 90)
    place.kubectl("patch", "vm", NAME, "--type=merge", "-p", '{"spec":{"runStrategy":"Halted"}}')
    until(lambda: place.phase() == "gone", 60)
    place.kubectl("delete", "vm", NAME, "--timeout=60s")
    assert place.kubectl("get", "vm,vmi", "-o", "name") == ""


def test_a_deployment_and_a_machine_in_one_list(place: Place) -> None:
    halted = machine(runStrategy="Halted")
    halted["metadata"]["name"] = "listed"
    listed = {"apiVersion": "v1", "kind": "List", "items": [halted, deployment("beside", replicas=0)]}
    said = place.kubectl("apply", "-f", "-", stdin=listed)
    assert "virtualmachine.kubevirt.io/listed created" in said and "deployment.apps/beside created" in said
    place.kubectl("delete", "vm/listed", "deploy/beside")
