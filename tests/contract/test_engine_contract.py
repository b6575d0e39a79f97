"""The engine against its contract, with real containers: create, start, stop, wait, remove and all that may go wrong."""

from __future__ import annotations

import asyncio
import os
import time

import msgspec
import pytest

from host.engine_support import IMAGE, Home, collect, config, home, opened, run, until
from insula import clock
from insula.drivers.driver import Channel
from insula.engine.contract import Engine, Event
from insula.engine.node import NodeEngine
from insula.errors import Conflict, HostFault, Invalid, NotFound, Unsupported
from insula.images.build import FileEntry
from insula.images.contract import Use
from insula.model.instance import (
    DiskConfig,
    InstanceConfig,
    MachineConfig,
    MountConfig,
    Process,
    Resources,
    RestartPolicy,
    Security,
)

pytestmark = pytest.mark.root


@pytest.fixture
def place():
    with home() as made:
        yield made


@pytest.fixture
async def engine(place: Home):
    async with opened(place) as made:
        yield made


def satisfies(engine: NodeEngine) -> Engine:
    """mypy proves that the node engine is an Engine."""
    return engine


# --- create, run, remove


async def test_run_and_leave_nothing(engine: NodeEngine, place: Home) -> None:
    state, out, err = await run(engine, config("sh", "-c", "echo out; echo err >&2; exit 7", auto_remove=True))
    assert (state.exit_code, out, err) == (7, b"out\n", b"err\n")
    assert await engine.list() == []
    assert list(place.paths.instances.iterdir()) == []
    assert list(place.paths.bundles.iterdir()) == []


async def test_a_whole_life(engine: NodeEngine) -> None:
    made = await engine.create(config("sleep", "60", name="web", labels={"a": "b"}))
    assert made.state.name == "created"
    assert made.config.name == "web"
    assert made.image is not None
    for reference in (made.id, made.id[:10], "web", "/web"):
        assert (await engine.get(reference)).id == made.id
    running = (await engine.start("web")).state
    assert running.name == "running"
    assert running.pid > 0
    assert (await engine.start("web")).state == running  # left alone
    assert await engine.pids("web") == [running.pid]
    assert (await engine.stats("web")).pids >= 1  # the runtime may not have become the program yet
    await engine.pause("web")
    assert (await engine.get("web")).state.name == "paused"
    with pytest.raises(Conflict, match="already paused"):
        await engine.pause("web")
    await engine.unpause("web")
    stopped = (await engine.stop("web", timeout_s=0)).state
    assert (stopped.name, stopped.exit_code, stopped.pid) == ("exited", 137, 0)
    assert clock.parse_rfc3339(stopped.finished_at) >= clock.parse_rfc3339(stopped.started_at)
    assert (await engine.stop("web")).state == stopped
    assert (await engine.start("web")).state.name == "running"
    with pytest.raises(Conflict, match="stop the container before removing or force remove"):
        await engine.remove("web")
    await engine.remove("web", force=True)
    with pytest.raises(NotFound, match="No such container: web"):
        await engine.get("web")


async def test_two_clients_one_name(engine: NodeEngine) -> None:
    wishes = [engine.create(config("true", name="only")) for _ in range(8)]
    results = await asyncio.gather(*wishes, return_exceptions=True)
    winners = [each for each in results if not isinstance(each, BaseException)]
    losers = [each for each in results if isinstance(each, Conflict)]
    assert (len(winners), len(losers)) == (1, 7)
    assert all(f'is already in use by container "{winners[0].id}"' in each.message for each in losers)
    assert len(await engine.list()) == 1


async def test_what_cannot_be_made_leaves_nothing(engine: NodeEngine, place: Home) -> None:
    with pytest.raises(NotFound, match="No such image"):
        await engine.create(config("true", image="nowhere"))
    with pytest.raises(NotFound):
        await engine.create(config("true", network_mode="nowhere"))
    with pytest.raises(Invalid, match="unknown or invalid runtime name: x"):
        await engine.create(config("true", driver="x"))
    with pytest.raises(Invalid, match="bind source path does not exist"):
        await engine.create(
            config(
                "true",
                mounts=(
                    MountConfig(kind="volume", target="/v"),
                    MountConfig(kind="bind", target="/b", source=str(place.folder / "nowhere")),
                ),
            )
        )
    assert await engine.list() == []
    assert list(place.paths.instances.iterdir()) == []
    assert await engine.volumes.list() == []


@pytest.mark.parametrize(("command", "code"), [(("/nowhere",), 127), (("/etc",), 126)])
async def test_a_command_that_cannot_run(engine: NodeEngine, command: tuple[str, ...], code: int) -> None:
    made = await engine.create(config(*command))
    with pytest.raises(HostFault) as refused:
        await engine.start(made.id)
    assert refused.value.code == code
    state = (await engine.get(made.id)).state
    assert (state.name, state.exit_code) == ("created", code)
    assert state.error
    await engine.remove(made.id)


async def test_a_failed_run_with_auto_remove_leaves_nothing(engine: NodeEngine) -> None:
    made = await engine.create(config("/nowhere", auto_remove=True))
    attached = await engine.attach(made.id)
    with pytest.raises(HostFault):
        await engine.start(made.id)
    assert (await collect(attached))[Channel.STDOUT] == b""
    await attached.close()
    assert await engine.list() == []


async def test_an_unknown_user_is_refused_at_start(engine: NodeEngine) -> None:
    made = await engine.create(config("id", user="nobody-here"))
    with pytest.raises(Invalid, match="unable to find user nobody-here"):
        await engine.start(made.id)


# --- streams


async def test_a_megabyte_of_anything_through_stdin_and_stdout(engine: NodeEngine) -> None:
    data = bytes(range(256)) * 4096
    state, out, _ = await run(engine, config("cat", open_stdin=True, stdin_once=True, auto_remove=True), stdin=data)
    assert state.exit_code == 0
    assert out == data


async def test_several_attachments_see_the_same(engine: NodeEngine) -> None:
    made = await engine.create(config("cat", open_stdin=True))
    early = [await engine.attach(made.id) for _ in range(2)]
    await engine.start(made.id)
    late = await engine.attach(made.id)
    readers = [asyncio.create_task(collect(each)) for each in (*early, late)]
    await asyncio.sleep(0.05)
    await early[0].write(b"hello\n")
    await asyncio.sleep(0.05)
    await late.close()
    assert (await engine.get(made.id)).state.name == "running"
    await engine.stop(made.id, timeout_s=0)
    outputs = [(await each)[Channel.STDOUT] for each in readers[:2]]
    readers[2].cancel()
    await asyncio.gather(readers[2], return_exceptions=True)
    for each in early:
        await each.close()
    assert outputs == [b"hello\n", b"hello\n"]


async def test_a_terminal_has_the_size_that_was_set(engine: NodeEngine) -> None:
    made = await engine.create(config("sh", "-c", "stty size; read x; stty size", tty=True, open_stdin=True))
    attached = await engine.attach(made.id)
    await engine.resize(made.id, 101, 33)
    await engine.start(made.id)
    out = b""
    async with asyncio.timeout(20):
        async for _, data in attached.read():
            out += data
            if out == b"33 101\r\n":
                await engine.resize(made.id, 90, 20)
                await attached.write(b"\n")
    await attached.close()
    assert out.startswith(b"33 101\r\n")
    assert b"20 90" in out


async def test_exec(engine: NodeEngine) -> None:
    made = await engine.create(config("sleep", "60", env=("A=1",), working_dir="/tmp"))
    await engine.start(made.id)
    exec_ = await engine.exec_create(
        made.id,
        Process(args=("sh", "-c", "echo $A $B $(pwd); id -u; cat; exit 9"), open_stdin=True, cwd=""),
        user="65534",
        env=("B=2",),
    )
    assert (exec_.running, exec_.exit_code) == (False, None)
    streams = await engine.exec_start(exec_.id)
    reading = asyncio.create_task(collect(streams))
    await streams.write(b"input")
    await streams.close_stdin()
    assert await engine.exec_wait(exec_.id) == 9
    assert (await reading)[Channel.STDOUT] == b"1 2 /tmp\n65534\ninput"
    await streams.close()
    found = await engine.exec_get(exec_.id[:12])
    assert (found.running, found.exit_code, found.instance) == (False, 9, made.id)
    with pytest.raises(Conflict, match="already been started"):
        await engine.exec_start(exec_.id)
    with pytest.raises(NotFound, match="No such exec instance: zzz"):
        await engine.exec_get("zzz")
    bad = await engine.exec_create(made.id, Process(args=("/nowhere",)))
    with pytest.raises(HostFault):
        await engine.exec_start(bad.id)
    assert await engine.exec_wait(bad.id) == 127
    await engine.stop(made.id, timeout_s=0)
    with pytest.raises(Conflict, match="is not running"):
        await engine.exec_create(made.id, Process(args=("id",)))


# --- waiting, stopping, restarting


async def test_waits(engine: NodeEngine) -> None:
    made = await engine.create(config("sh", "-c", "exit 5"))
    assert (await engine.wait(made.id)).name == "created"
    exits = [asyncio.create_task(engine.wait(made.id, "next-exit")) for _ in range(3)]
    gone = asyncio.create_task(engine.wait(made.id, "removed"))
    await asyncio.sleep(0)
    await engine.start(made.id)
    assert [(await each).exit_code for each in exits] == [5, 5, 5]
    assert (await engine.wait(made.id)).exit_code == 5
    await engine.remove(made.id)
    assert (await gone).exit_code == 5


async def test_stop_asks_first_and_a_kill_cuts_it_short(engine: NodeEngine) -> None:
    polite = await engine.create(config("sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.01; done"))
    deaf = await engine.create(config("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"))
    attached = await engine.attach(deaf.id)
    await asyncio.gather(engine.start(polite.id), engine.start(deaf.id))
    assert (await anext(attached.read()))[1] == b"ready\n"
    await attached.close()
    await asyncio.sleep(0.1)
    assert (await engine.stop(polite.id)).state.exit_code == 4
    began = time.monotonic()
    stopping = asyncio.create_task(engine.stop(deaf.id, timeout_s=60))
    await asyncio.sleep(0.05)
    await engine.remove(deaf.id, force=True)
    await stopping
    assert time.monotonic() - began < 10
    with pytest.raises(Conflict, match="cannot kill container"):
        await engine.kill(polite.id)


async def test_kill_with_another_signal(engine: NodeEngine) -> None:
    made = await engine.create(
        config("sh", "-c", "trap 'echo usr1; exit 3' USR1; echo up; while :; do sleep 0.01; done")
    )
    attached = await engine.attach(made.id)
    await engine.start(made.id)
    chunks = attached.read()
    assert (await anext(chunks))[1] == b"up\n"
    ended = asyncio.create_task(engine.wait(made.id, "next-exit"))
    await asyncio.sleep(0)
    await engine.kill(made.id, "USR1")
    assert (await ended).exit_code == 3
    assert (await anext(chunks))[1] == b"usr1\n"
    await attached.close()
    with pytest.raises(Invalid, match="invalid signal"):
        await engine.kill(made.id, "NOPE")


async def test_restart_keeps_one_that_would_be_removed(engine: NodeEngine) -> None:
    made = await engine.create(config("sleep", "60", auto_remove=True))
    first = (await engine.start(made.id)).state.pid
    again = await engine.restart(made.id, timeout_s=0)
    assert again.state.name == "running"
    assert again.state.pid != first
    await engine.stop(made.id, timeout_s=0)
    assert await engine.list() == []


async def test_on_failure_tries_as_often_as_allowed(engine: NodeEngine) -> None:
    made = await engine.create(config("sh", "-c", "exit 3", restart=RestartPolicy(name="on-failure", max_retries=2)))
    await engine.start(made.id)
    async with asyncio.timeout(20):
        while (state := await engine.wait(made.id)).name == "restarting":
            assert state.exit_code == 3
    assert (state.name, state.exit_code, state.restart_count) == ("exited", 3, 2)


async def test_always_comes_back_until_it_is_stopped(engine: NodeEngine) -> None:
    made = await engine.create(config("echo", "once", restart=RestartPolicy(name="always")))
    attached = await engine.attach(made.id)
    await engine.start(made.id)
    async with asyncio.timeout(20):
        assert await collect(attached) == {Channel.STDOUT: b"once\n", Channel.STDERR: b""}  # it ends with the first run
        await attached.close()
        for _ in range(2):
            ended = await engine.wait(made.id, "next-exit")
        assert ended.name == "restarting"
        with pytest.raises(Conflict, match="is restarting, wait until the container is running"):
            await engine.attach(made.id)
    await engine.stop(made.id)
    rested = await engine.get(made.id)
    assert rested.state.name == "exited"
    await asyncio.sleep(0.5)
    assert (await engine.get(made.id)).state == rested.state


async def test_a_killed_process_comes_back(engine: NodeEngine) -> None:
    import os
    import signal

    made = await engine.create(config("sleep", "60", restart=RestartPolicy(name="unless-stopped")))
    first = (await engine.start(made.id)).state.pid
    ended = asyncio.create_task(engine.wait(made.id, "next-exit"))
    await asyncio.sleep(0)
    os.kill(first, signal.SIGKILL)
    assert (await ended).exit_code == 137
    again = await until(engine, made.id, "running")
    assert again.state.pid != first
    assert again.state.restart_count == 1


async def test_a_client_that_leaves_does_not_stop_a_start(engine: NodeEngine) -> None:
    made = await engine.create(config("sleep", "60"))
    asking = asyncio.create_task(engine.start(made.id))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(engine, made.id, "running")


# --- names, envelope, logs, events


async def test_rename(engine: NodeEngine) -> None:
    one, two = await engine.create(config("true", name="one")), await engine.create(config("true", name="two"))
    with pytest.raises(Conflict, match='"/two" is already in use'):
        await engine.rename(one.id, "two")
    await engine.rename(one.id, "three")
    assert (await engine.get("three")).id == one.id
    await engine.rename(two.id, "one")
    with pytest.raises(Invalid, match="may be empty"):
        await engine.rename(one.id, "")
    with pytest.raises(Invalid, match="Error when allocating new name: Invalid container name"):
        await engine.rename(one.id, "/")
    with pytest.raises(Invalid, match="same name"):
        await engine.rename(one.id, "three")


async def test_update(engine: NodeEngine) -> None:
    made = await engine.create(
        config("sleep", "60", resources=Resources(memory_bytes=64 << 20, memory_swap_bytes=128 << 20))
    )
    await engine.start(made.id)
    changed = await engine.update(
        made.id, resources=Resources(memory_bytes=32 << 20), restart=RestartPolicy(name="always")
    )
    assert changed.config.resources.memory_bytes == 32 << 20
    assert (await engine.stats(made.id)).memory_limit_bytes == 32 << 20
    assert changed.config.restart.name == "always"


async def test_logs(engine: NodeEngine) -> None:
    made = await engine.create(config("sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.02; done; printf end"))
    await engine.start(made.id)
    async with asyncio.timeout(10):
        followed = [line.data async for line in engine.logs(made.id, follow=True)]
    assert followed == [b"1\n", b"2\n", b"3\n", b"end"]
    assert [line.data async for line in engine.logs(made.id, tail=2)] == [b"3\n", b"end"]


async def test_no_log_is_kept_when_none_is_wanted(engine: NodeEngine) -> None:
    state, out, _ = await run(engine, config("echo", "x", name="mute", log_driver="none"))
    assert (state.exit_code, out) == (0, b"x\n")  # who is attached gets it all the same
    made = await engine.get("mute")
    assert made.log_path == ""
    with pytest.raises(Unsupported, match="configured logging driver does not support reading"):
        engine.logs("mute")
    assert "log" not in os.listdir(made.folder)


async def test_a_log_stays_within_its_limit(engine: NodeEngine) -> None:
    options = {"max-size": "64k", "max-file": "2"}
    await engine.create(config("seq", "60000", name="chatty", log_options=options))
    await engine.start("chatty")
    assert (await engine.wait("chatty")).exit_code == 0
    made = await engine.get("chatty")
    assert os.stat(made.log_path).st_blocks * 512 <= 128_000
    kept = b"".join([line.data async for line in engine.logs("chatty")])
    assert b"".join(f"{number}\n".encode() for number in range(60_001)).endswith(kept)
    assert kept.count(b"\n") * 60 > 60_000
    await engine.start("chatty")  # goes on in the same file
    await engine.wait("chatty")
    assert [line.data async for line in engine.logs("chatty", tail=1)] == [b"60000\n"]
    assert os.stat(made.log_path).st_blocks * 512 <= 128_000
    with pytest.raises(Invalid, match="failed to initialize logging driver"):
        await engine.create(config("true", log_options={"max-size": "big"}))


async def test_events_tell_the_story(engine: NodeEngine) -> None:
    listener = engine.events()
    await run(engine, config("sh", "-c", "exit 2", name="story", auto_remove=True, labels={"k": "v"}))
    engine.publish(Event(type="image", action="pull", id="i"))
    seen = []
    async for event in listener:
        seen.append(event)
        if event.type == "image":
            break
    await listener.aclose()
    assert [event.action for event in seen] == ["create", "attach", "start", "die", "destroy", "pull"]
    assert seen[3].attributes["exitCode"] == "2"
    assert seen[3].attributes["name"] == "story"
    assert seen[3].attributes["image"] == IMAGE
    assert seen[3].attributes["k"] == "v"


async def test_volumes(engine: NodeEngine) -> None:
    mounts = (
        MountConfig(kind="volume", target="/data", source="kept"),
        MountConfig(kind="volume", target="/etc"),
        MountConfig(kind="tmpfs", target="/scratch", size_bytes=65536),
    )
    script = "echo x > /data/f; ls /etc | wc -l; df -k /scratch | tail -1 | awk '{print $2}'"
    first = await engine.create(config("sh", "-c", script, mounts=mounts))
    anonymous = next(mount.volume for mount in first.mounts if mount.config.target == "/etc")
    attached = await engine.attach(first.id)
    ended = asyncio.create_task(engine.wait(first.id, "next-exit"))
    await engine.start(first.id)
    out = (await collect(attached))[Channel.STDOUT].split()
    await attached.close()
    await ended
    assert int(out[0]) > 3  # copied up
    assert out[1] == b"64"
    await engine.remove(first.id, volumes=True)
    assert [volume.name for volume in await engine.volumes.list()] == ["kept"]
    assert anonymous not in {volume.name for volume in await engine.volumes.list()}
    _, out2, _ = await run(engine, config("cat", "/data/f", mounts=mounts[:1], auto_remove=True))
    assert out2 == b"x\n"


async def test_a_read_only_root(engine: NodeEngine) -> None:
    state, _, err = await run(engine, config("touch", "/x", security=Security(readonly_rootfs=True), auto_remove=True))
    assert state.exit_code == 1
    assert b"Read-only" in err


def bootable(size: int) -> bytes:
    """A raw disk that says so: a partition table with one partition (UEFI specification 5.2)."""
    entry = bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0]) + (1).to_bytes(4, "little") + (size // 512 - 1).to_bytes(4, "little")
    return bytes(446) + entry + bytes(48) + b"\x55\xaa" + bytes(size - 512)


async def test_images_in_use_are_known_also_after_a_restart(place: Home) -> None:
    async with opened(place, destroy=False) as engine:
        files = (FileEntry(path="disk/root.img", data=bootable(1 << 20)), FileEntry(path="vmlinuz", data=b"kernel"))
        disk = await engine.images.add_files_image("disk:1", files, {})
        machine = MachineConfig(
            disks=(DiskConfig(name="root", kind="image", source="disk:1"),),
            kernel_image="disk:1",
            kernel_path="/vmlinuz",
        )
        made = await engine.create(InstanceConfig(name="m", driver="vm", machine=machine))
        box = await engine.create(config("true", name="box"))
        assert box.image is not None
        uses = {Use(image=disk.id, instance=made.id, files=True), Use(image=box.image.id, instance=box.id)}
        assert set(await engine.image_uses()) == uses
        other = await engine.images.add_files_image("disk:1", (files[1],), {})  # the name moves, the machine stays
        assert other.id != disk.id
    async with opened(place, destroy=False) as engine:
        assert set(await engine.image_uses()) == uses
        with pytest.raises(Conflict, match="cannot be forced"):
            await engine.images.remove(disk.id, force=True, uses=await engine.image_uses())
        gone = await engine.images.remove(box.image.id, force=True, uses=await engine.image_uses())
        assert gone[-1] == ("deleted", box.image.id)
    async with opened(place, demo=False) as engine:
        assert {image.id for image in await engine.images.list()} == {other.id, disk.id}
        assert (await engine.get("box")).image == msgspec.structs.replace(box.image, names=())
        await engine.start("box")  # it has kept its image
        assert (await engine.wait("box")).exit_code == 0
        await engine.remove("box")
        await engine.remove("m")
        assert await engine.image_uses() == []
        await engine.images.remove(disk.id, uses=await engine.image_uses())
        with pytest.raises(NotFound):
            await engine.images.held(box.image.id)


async def test_close_ends_waits_with_an_error_and_workloads_go_on(place: Home) -> None:
    from insula.errors import Unavailable

    async with opened(place, destroy=False) as engine:
        made = await engine.create(config("sleep", "60", name="on"))
        await engine.start(made.id)
        waiting = asyncio.create_task(engine.wait(made.id))
        await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await waiting
    async with opened(place) as engine:
        assert (await engine.get("on")).state.name == "running"
