"""What containers are given and refused, as seen from inside; faults with Docker's exit codes; crashes of conmon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contract.driver_support import OciCase, collect, monitors, open_case
from insula.drivers.driver import Exit, Handle, Phase
from insula.drivers.oci import OciDriver, probing
from insula.drivers.oci.runtime import Runtime
from insula.errors import HostFault, Invalid, Unsupported
from insula.host import capabilities, cgroups, pidfd
from insula.host.pidfd import ProcessId
from insula.model.instance import Device, InstanceSpec, Mount, Process, Resources, Security, Ulimit

pytestmark = pytest.mark.root
MIB = 1 << 20


@pytest.fixture
async def case(tmp_path: Path) -> AsyncIterator[OciCase]:
    async for case in open_case("oci", tmp_path):
        yield case


@pytest.fixture
def driver(case: OciCase) -> OciDriver:
    return case.driver()


async def run(driver: OciDriver, spec: InstanceSpec) -> tuple[str, Exit]:
    """Its whole output (errors after the rest) and how it ended."""
    handle = await driver.create(spec)
    try:
        streams = await driver.attach(handle)
        await driver.start(handle)
        out, err = await collect(streams)
        return (out + err).decode(), await driver.wait(handle)
    finally:
        await driver.delete(handle)


def lines(text: str) -> dict[str, str]:
    """`name: value` lines, as in /proc/self/status."""
    return {line.partition(":")[0]: line.partition(":")[2].strip() for line in text.splitlines()}


# --- what is inside


async def test_capabilities_are_dockers(case: OciCase, driver: OciDriver) -> None:
    status = lines((await run(driver, case.spec("/bin/cat", "/proc/self/status")))[0])
    assert status["CapBnd"] == status["CapEff"] == status["CapPrm"] == "00000000a80425fb"
    assert status["CapInh"] == status["CapAmb"] == "0000000000000000"
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "0"


async def test_another_user_has_no_capability(case: OciCase, driver: OciDriver) -> None:
    output, _ = await run(driver, case.shell("id; cat /proc/self/status", uid=1000, gid=1000, groups=(5, 6)))
    assert output.startswith("uid=1000 gid=1000 groups=")
    assert lines(output)["CapEff"] == "0000000000000000"


async def test_privileged_has_all_that_the_host_has(case: OciCase, driver: OciDriver) -> None:
    script = "cat /proc/self/status; mount -t tmpfs none /tmp 2>&1 && echo mounted"
    (case.rootfs / "tmp").mkdir()
    (case.rootfs / "bin" / "mount").symlink_to("busybox")
    output, _ = await run(driver, case.shell(script, security=Security(privileged=True)))
    status = lines(output)
    assert capabilities.parse_bounding(f"CapBnd: {status['CapEff']}") == capabilities.bounding()
    assert status["Seccomp"] == "0"
    assert "mounted" in output


async def test_no_new_privileges_and_capabilities_chosen(case: OciCase, driver: OciDriver) -> None:
    security = Security(no_new_privileges=True, cap_drop=("ALL",), cap_add=("net_admin", "CAP_CHOWN"))
    status = lines((await run(driver, case.spec("/bin/cat", "/proc/self/status", security=security)))[0])
    assert status["NoNewPrivs"] == "1"
    assert capabilities.parse_bounding(f"CapBnd: {status['CapBnd']}") == ("CAP_CHOWN", "CAP_NET_ADMIN")


async def test_a_capability_the_host_lacks_is_named(case: OciCase, driver: OciDriver) -> None:
    missing = sorted(set(capabilities.NAMES) - set(capabilities.bounding()))
    if not missing:
        pytest.skip("this host has them all")
    with pytest.raises(Unsupported, match=missing[0]):
        await driver.create(case.spec("/bin/true", security=Security(cap_add=(missing[0],))))


async def test_system_calls_are_filtered(case: OciCase, driver: OciDriver) -> None:
    (case.rootfs / "bin" / "unshare").symlink_to("busybox")
    output, done = await run(driver, case.spec("/bin/unshare", "-m", "/bin/true"))
    assert "Operation not permitted" in output
    assert done.code != 0


async def test_proc_is_masked_and_kernel_settings_are_readonly(case: OciCase, driver: OciDriver) -> None:
    script = "wc -c < /proc/timer_list; echo 1 > /proc/sys/vm/overcommit_memory; echo x > /sys/kernel/mm/ksm/run"
    output, _ = await run(driver, case.shell(script))
    assert output.splitlines()[0] == "0"
    assert output.count("Read-only file system") == 2


async def test_namespaces_are_its_own(case: OciCase, driver: OciDriver) -> None:
    script = "echo $$; hostname; ls /sys/class/net; ps | wc -l"
    (case.rootfs / "bin" / "hostname").symlink_to("busybox")
    output, _ = await run(driver, case.shell(script, hostname="inside"))
    assert output.splitlines()[:3] == ["1", "inside", "lo"]


async def test_the_hosts_namespaces_can_be_shared(case: OciCase, driver: OciDriver) -> None:
    script = "for n in net pid ipc uts; do readlink /proc/self/ns/$n; done"
    (case.rootfs / "bin" / "readlink").symlink_to("busybox")
    output, _ = await run(driver, case.shell(script, netns="", pidns="", ipcns="", utsns=""))
    assert output.split() == [os.readlink(f"/proc/self/ns/{name}") for name in ("net", "pid", "ipc", "uts")]


async def test_mounts_devices_limits_and_settings(case: OciCase, driver: OciDriver, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("from the host\n")
    spec = case.shell(
        "cat /data/file; echo x > /data/new; ls -l /dev/mine /dev/null; ulimit -n; cat /proc/sys/net/ipv4/ip_forward;"
        "cat /proc/self/oom_score_adj; cat /proc/mounts",
        mounts=(
            Mount(target="/data", kind="bind", source=str(tmp_path / "data"), options=("rbind", "ro", "rprivate")),
            Mount(target="/dev/shm", kind="tmpfs", source="shm", options=("nosuid", "size=1048576")),
        ),
        devices=(Device(source="/dev/zero", target="/dev/mine"),),
        ulimits=(Ulimit(name="nofile", soft=123, hard=456),),
        sysctls={"net.ipv4.ip_forward": "1"},
        oom_score_adj=500,
    )
    output, _ = await run(driver, spec)
    assert "from the host" in output
    assert "Read-only file system" in output
    assert "1,   5" in output
    assert "\n123\n1\n500\n" in output
    assert "size=1024k" in output


async def test_a_read_only_root(case: OciCase, driver: OciDriver) -> None:
    output, _ = await run(driver, case.shell("echo x > /file", security=Security(readonly_rootfs=True)))
    assert "Read-only file system" in output


async def test_an_init_reaps_and_passes_signals_on(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.shell("echo $$; exec sleep 1000", init=True))
    streams = await driver.attach(handle)
    await driver.start(handle)
    async for _, data in streams.read():
        assert int(data) != 1
        break
    assert (await driver.stop(handle, signal.SIGTERM, 5)).code == 143
    await driver.delete(handle)


# --- the envelope


async def test_memory_is_limited_and_the_kill_is_told(
    case: OciCase, driver: OciDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    spec = case.spec("/bin/tail", "/dev/zero", resources=Resources(memory_bytes=16 * MIB, memory_swap_bytes=16 * MIB))
    _, done = await run(driver, spec)
    assert done.code == 137
    assert done.oom_killed
    assert not any(here.iterdir())  # conmon marks it in its own folder, not in ours


async def test_update_changes_limits(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.forever())
    await driver.start(handle)
    await driver.update(
        handle, Resources(memory_bytes=64 * MIB, pids_limit=50, cpu_quota_us=50000, cpu_period_us=100000)
    )
    stats = await driver.stats(handle)
    assert (stats.memory_limit_bytes, stats.pids_limit) == (64 * MIB, 50)
    await driver.update(handle, Resources(memory_bytes=128 * MIB))
    assert (await driver.stats(handle)).memory_limit_bytes == 128 * MIB
    await driver.delete(handle)


async def test_pids_are_limited(case: OciCase, driver: OciDriver) -> None:
    script = "i=0; while [ $i -lt 64 ]; do sleep 100 & i=$((i+1)); done; echo all of them"
    output, _ = await run(driver, case.shell(script, resources=Resources(pids_limit=32)))  # runc itself needs about ten
    assert "can't fork" in output
    assert "all of them" not in output


async def test_a_pause_stops_time(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.shell("while :; do :; done"))
    await driver.start(handle)
    await driver.pause(handle)
    before = (await driver.stats(handle)).cpu_total_ns
    await asyncio.sleep(0.2)
    assert (await driver.stats(handle)).cpu_total_ns == before
    await driver.resume(handle)
    await asyncio.sleep(0.2)
    assert (await driver.stats(handle)).cpu_total_ns > before
    await driver.delete(handle)


# --- refusals


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("nothing",), 127, "executable file not found in $PATH"),
        (("/bin/nothing",), 127, "no such file or directory"),
        (("/dev",), 126, ""),
        (("/bin/notexec",), 126, "permission denied"),
    ],
)
async def test_what_cannot_run_has_dockers_code(
    case: OciCase, driver: OciDriver, args: tuple[str, ...], code: int, words: str
) -> None:
    (case.rootfs / "bin" / "notexec").write_text("text")
    (case.rootfs / "dev").mkdir(exist_ok=True)
    with pytest.raises(HostFault) as refused:
        handle = await driver.create(case.spec(*args))
        await driver.start(handle)
    assert refused.value.code == code
    assert words in refused.value.message
    assert refused.value.message.startswith(
        "failed to create task for container: failed to create shim task: OCI runtime create failed"
    )
    assert refused.value.command
    assert case.leftovers() == []


async def test_a_wrong_working_folder_or_mount_is_refused_and_leaves_nothing(case: OciCase, driver: OciDriver) -> None:
    mount = Mount(target="/bin/sh/x", kind="bind", source="/etc", options=("rbind",))
    for spec in (case.spec("/bin/true", mounts=(mount,)), case.spec("/bin/true", sysctls={"kernel.nonsense": "1"})):
        with pytest.raises(HostFault):
            await driver.create(spec)
    assert case.leftovers() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"security": Security(cap_add=("CAP_NONSENSE",))},
        {"security": Security(seccomp="{not json")},
        {"devices": (Device(source="/etc/passwd", target="/dev/x"),)},
        {"devices": (Device(source="/dev/nothing-there", target="/dev/x"),)},
    ],
)
async def test_wrong_words_are_invalid(case: OciCase, driver: OciDriver, fields: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        await driver.create(case.spec("/bin/true", **fields))
    assert case.leftovers() == []


async def test_an_empty_command_is_invalid(case: OciCase, driver: OciDriver) -> None:
    with pytest.raises(Invalid):
        await driver.create(case.spec())


# --- crashes


async def started(driver: OciDriver, case: OciCase) -> Handle:
    handle = await driver.create(case.forever())
    await driver.start(handle)
    await case.ready(handle)
    return handle


async def test_conmon_is_in_a_session_of_its_own(case: OciCase, driver: OciDriver) -> None:
    handle = await started(driver, case)
    (monitor,) = monitors(handle.id)
    assert os.getsid(monitor) not in (os.getsid(0), 0)
    assert os.getpgid(monitor) != os.getpgid(0)
    await driver.delete(handle)


async def test_a_dead_conmon_counts_as_the_end(case: OciCase, driver: OciDriver) -> None:
    handle = await started(driver, case)
    (monitor,) = monitors(handle.id)
    wait = asyncio.ensure_future(driver.wait(handle))
    await asyncio.sleep(0.05)
    os.kill(monitor, signal.SIGKILL)
    done = await asyncio.wait_for(wait, 5)
    assert (done.code, done.message) == (137, "its monitor (conmon) died")
    assert (await case.driver().recover(handle)).phase is Phase.EXITED
    for _ in range(100):
        if not cgroups.pids(driver._container(handle).group):
            break
        await asyncio.sleep(0.01)
    assert cgroups.pids(driver._container(handle).group) == []
    await driver.delete(handle)


async def test_a_cancelled_create_leaves_nothing(case: OciCase, driver: OciDriver) -> None:
    for pause_s in (0.0, 0.005, 0.02, 0.03):
        create = asyncio.ensure_future(driver.create(case.forever()))
        await asyncio.sleep(pause_s)
        create.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await driver.delete(await create)
    assert case.leftovers() == []


async def test_a_log_that_conmon_would_misread_is_refused(case: OciCase, driver: OciDriver) -> None:
    spec = case.spec("/bin/true")
    with pytest.raises(HostFault, match="colon"):
        await driver.create(msgspec.structs.replace(spec, log_path=f"{spec.directory}/a:b"))
    assert case.leftovers() == []


async def test_without_a_log_nothing_is_written(case: OciCase, driver: OciDriver) -> None:
    spec = msgspec.structs.replace(case.says("x"), log_path="")
    assert (await run(driver, spec))[0] == "x\n"
    assert list(Path(spec.directory).iterdir()) == []


async def test_a_very_long_folder_name(case: OciCase, driver: OciDriver, tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    spec = msgspec.structs.replace(case.says("deep"), directory=str(folder), log_path=str(folder / "log"))
    assert (await run(driver, spec))[0] == "deep\n"


async def test_host_processes_left_over_are_ended_by_delete(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.shell("sleep 1000 & exit 0", pidns=""))
    await driver.start(handle)
    assert (await driver.wait(handle)).code == 0
    assert len(cgroups.pids(driver._container(handle).group)) == 1
    await driver.delete(handle)
    assert case.leftovers() == []


async def test_20_at_once(case: OciCase, driver: OciDriver) -> None:
    async def one(number: int) -> tuple[str, Exit]:
        return await run(driver, case.shell(f"echo {number}; exit {number}"))

    for number, (output, done) in enumerate(await asyncio.gather(*(one(number) for number in range(20)))):
        assert (output, done.code) == (f"{number}\n", number)


# --- exec details


async def test_exec_has_the_containers_rights(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.forever())
    await driver.start(handle)
    for privileged, wanted in ((False, "00000000a80425fb"), (True, None)):
        process = Process(args=("/bin/cat", "/proc/self/status"), privileged=privileged)
        running = await driver.exec(handle, f"e{privileged}", process)
        status = lines((await collect(running.streams))[0].decode())
        assert status["CapEff"] == wanted or (
            wanted is None and capabilities.parse_bounding(f"CapBnd: {status['CapEff']}") == capabilities.bounding()
        )
        await running.wait()
    await driver.delete(handle)


async def test_exec_as_another_user_elsewhere(case: OciCase, driver: OciDriver) -> None:
    handle = await driver.create(case.forever())
    await driver.start(handle)
    process = Process(args=("/bin/sh", "-c", "id; pwd; echo $X"), env=("PATH=/bin", "X=y"), cwd="/bin", uid=7, gid=8)
    running = await driver.exec(handle, "e1", process)
    assert (await collect(running.streams))[0] == b"uid=7 gid=8\n/bin\ny\n"
    await running.wait()
    await driver.delete(handle)


# --- the probe


async def test_a_probe_without_a_runtime_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing.runtimes, "find", lambda name: "")
    found = await OciDriver(tmp_path).probe()
    assert not found.available
    assert any("conmon" in note for note in found.notes)


async def test_a_probe_of_a_broken_runtime_says_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    id = os.urandom(32).hex()
    monkeypatch.setattr(probing.secrets, "token_hex", lambda _size: id)
    found = await OciDriver(tmp_path / "run", runtime="/bin/false").probe()
    assert not found.available
    assert "false" in found.notes[0]
    assert list((tmp_path / "run").glob("probe-*")) == []
    for root in cgroups.detect().roots.values():
        assert not Path(root, f"insula-probe-{id[:12]}").exists()


async def test_a_trial_that_was_killed_is_cleared_away_later(case: OciCase) -> None:
    """As a daemon leaves it that is killed in its first moments: a container that waits to be started."""
    id = os.urandom(32).hex()
    folder, parent = case.folder / "run" / f"probe-{id[:12]}", f"insula-probe-{id[:12]}"
    trial = OciDriver(case.folder / "run", cgroup_parent=parent)
    trial.adopt(case.runtime)
    handle = await trial.create(probing._instance(id, folder))
    await trial.close()
    await OciDriver(case.folder / "run").probe()
    assert folder.exists()  # somebody may be trying just now
    os.utime(folder, (0, 0))
    assert (await OciDriver(case.folder / "run").probe()).available
    assert not folder.exists()
    assert not pidfd.alive(ProcessId(handle.data["pid"], handle.data["pid_start"]))
    for root in cgroups.detect().roots.values():
        assert not Path(root, parent).exists()


async def test_a_probe_is_remembered_until_a_program_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    real = probing._try

    async def counted(candidate: Runtime, *rest: Any) -> str:
        tried.append(candidate.name)
        return await real(candidate, *rest)

    monkeypatch.setattr(probing, "_try", counted)
    first = await OciDriver(tmp_path).probe()
    once = len(tried)
    assert first.available and once
    again = OciDriver(tmp_path)
    assert await again.probe() == first
    assert len(tried) == once
    assert await again._runtime() == await OciDriver(tmp_path)._runtime()
    monkeypatch.setitem(probing.NEEDED, "true", "coreutils")  # one more program that the answer depends on
    assert (await OciDriver(tmp_path).probe()).available
    assert len(tried) > once
    (tmp_path / "runtime.json").write_text("{")
    assert (await OciDriver(tmp_path).probe()).available
