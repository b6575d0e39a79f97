"""From asking for a machine to its first instruction, beyond what QEMU itself takes with the same arguments.

The guest is a kernel of a few bytes that writes one letter to the serial line as soon as the firmware jumps to it. On Insula the
clock starts before the VirtualMachineInstance is sent and stops when the letter is in the machine's serial log; for the peer it
starts before QEMU is executed with the very arguments of Insula's (its sockets and log at other paths, not stopped at first).
"""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

from bench import processes
from bench.api import Api
from bench.benchmark import AT_MOST, Benchmark, Budget, Row, summary
from bench.commands import run as run_command
from bench.commands import until
from bench.context import Context
from bench.insula import Insula

IMAGE = "bench/first-instruction:1"
MACHINES = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances"
QEMU = "qemu-system-x86_64"
EVERY_S = 0.0005


def kernel() -> bytes:
    """A kernel after the Linux boot protocol 2.02 (Documentation/arch/x86/boot.rst): four sectors of set-up code, of which the
    entry at 0x200 jumps to `mov dx,0x3f8; mov al,'X'; out dx,al; cli; hlt`."""
    image = bytearray(0x200 * 6)
    image[0x1F1] = 4  # setup_sects
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x200:0x202] = b"\xeb\x6e"  # to 0x270, behind the header
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = b"\x02\x02"
    image[0x211] = 1  # loadflags: LOADED_HIGH
    code = b"\xba\xf8\x03\xb0X\xee\xfa\xf4\xeb\xfd"
    image[0x270 : 0x270 + len(code)] = code
    return bytes(image)


def _import_image(insula: Insula) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("boot/vmlinuz")
        member.size = len(kernel())
        archive.addfile(member, io.BytesIO(kernel()))
    run_command(["docker", "import", "-", IMAGE], env=insula.env, input=buffer.getvalue())


def _machine(name: str) -> dict[str, Any]:
    container = {"image": IMAGE, "kernelPath": "/boot/vmlinuz", "imagePullPolicy": "IfNotPresent"}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "domain": {
                "memory": {"guest": "128Mi"},
                "firmware": {"kernelBoot": {"container": container}},
                "devices": {"interfaces": [{"name": "default", "masquerade": {}}]},
            },
            "networks": [{"name": "default", "pod": {}}],
        },
    }


def _logs(insula: Insula) -> set[Path]:
    return set((insula.root / "data" / "engine" / "instances").glob("*/log"))


def _has_spoken(log: Path) -> bool:
    try:
        return log.stat().st_size > 0
    except FileNotFoundError:
        return False


def _on_insula(insula: Insula, api: Api, name: str) -> tuple[float, list[str]]:
    """Seconds, and QEMU's arguments."""
    before = _logs(insula)
    began = time.perf_counter()
    api.call("POST", MACHINES, _machine(name))
    until(lambda: any(map(_has_spoken, _logs(insula) - before)), "the machine's first word", every_s=EVERY_S)
    took = time.perf_counter() - began
    pid = processes.helpers(insula.mark(), names=(QEMU,))[0]
    argv = processes.command_lines()[pid]
    api.call("DELETE", f"{MACHINES}/{name}?gracePeriodSeconds=0")
    until(lambda: api.call("GET", f"{MACHINES}/{name}", accept=(404,))["kind"] == "Status", f"no {name}")
    return took, argv


def raw_arguments(argv: list[str], folder: Path, fds: tuple[int, int]) -> list[str]:
    """The same machine without Insula: not stopped, with its own sockets, log, pid file and tap device. Pure."""
    replaced = [word for word in argv if word != "-S"]
    changes = (
        (r"(socket,id=monitor0),fd=\d+", rf"\1,fd={fds[0]}"),
        (r"(socket,id=serial0),fd=\d+", rf"\1,fd={fds[1]}"),
        (r"logfile=[^,]*", f"logfile={folder}/log"),
        (r"unix:.*/vnc$", f"unix:{folder}/vnc"),
        (r"^/.*/qemu\.pid$", f"{folder}/qemu.pid"),
        (r"^(tap,.*ifname=)[^,]*", rf"\g<1>ib{os.getpid() % 100000}"),
    )
    for pattern, text in changes:
        replaced = [re.sub(pattern, text, word) for word in replaced]
    return replaced


def _raw(argv: list[str], folder: Path) -> float:
    folder.mkdir()
    log = folder / "log"
    sockets = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for number, listener in enumerate(sockets):
        listener.bind(str(folder / f"s{number}"))
        listener.listen()
    fds = (sockets[0].fileno(), sockets[1].fileno())
    began = time.perf_counter()
    process = subprocess.Popen(
        raw_arguments(argv, folder, fds), pass_fds=fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: _has_spoken(log), "the first word of QEMU alone", every_s=EVERY_S)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()
        for listener in sockets:
            listener.close()


def run(context: Context) -> list[Row]:
    """Turn by turn; the difference is taken turn by turn as well."""
    insula, api = context.insula, Api(context.insula.server())
    _import_image(insula)
    ours, raw = [], []
    for turn in range(-2, context.times(15, 3)):
        took, argv = _on_insula(insula, api, f"first{turn + 2}")
        alone = _raw(argv, context.scratch / f"raw{turn + 2}")
        if turn >= 0:
            ours.append(took * 1000)
            raw.append(alone * 1000)
    api.close()
    return [
        Row(
            what="machine asked for, to its first instruction",
            unit="ms",
            insula=summary(ours),
            peer=summary(raw),
            peer_name="QEMU alone",
        ),
        Row(
            what="of which beyond QEMU alone",
            unit="ms",
            insula=summary([mine - alone for mine, alone in zip(ours, raw, strict=True)]),
            budgets=(Budget(AT_MOST, 100),),
        ),
    ]


BENCHMARK = Benchmark("vm-start", "a machine's start to its first instruction", run)
