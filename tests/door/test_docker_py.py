"""docker-py, the Python client, unmodified."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import socket
import tarfile
import threading
from collections.abc import Iterator

import docker
import docker.errors
import docker.types
import pytest

from door.docker_support import IMAGE, Daemon, running, until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    yield from running()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.DockerClient(base_url=f"unix://{daemon.socket}", timeout=30)) as made:
        yield made


def test_ping_version_info(client: docker.DockerClient) -> None:
    assert client.ping()
    assert client.version()["Platform"]["Name"] == "Insula"
    assert client.info()["Name"] == "testnode"
    assert {"Containers", "Images", "Volumes", "LayersSize"} <= set(client.df())


def test_run_returns_the_output(client: docker.DockerClient) -> None:
    assert client.containers.run(IMAGE, ["echo", "hello"], remove=True, network_mode="none") == b"hello\n"
    with pytest.raises(docker.errors.ContainerError) as fault:
        client.containers.run(IMAGE, ["sh", "-c", "echo bad >&2; exit 4"], remove=True, network_mode="none")
    assert (fault.value.exit_status, fault.value.stderr) == (4, b"bad\n")
    with pytest.raises(docker.errors.APIError, match="executable file not found"):
        client.containers.run(IMAGE, ["nosuch"], remove=True, network_mode="none")


def test_life_of_a_container(daemon: Daemon, client: docker.DockerClient) -> None:
    name = daemon.name()
    container = client.containers.run(
        IMAGE,
        ["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"],
        name=name,
        detach=True,
        network_mode="none",
        environment={"A": "b"},
        labels={"l": name},
        mem_limit="64m",
        volumes={"/tmp": {"bind": "/host", "mode": "ro"}},
        tmpfs={"/t": "size=1m"},
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 1},
    )
    try:
        container.reload()
        assert container.status == "running" and container.name == name and container.labels["l"] == name
        assert [each.id for each in client.containers.list(filters={"label": f"l={name}"})] == [container.id]
        assert client.containers.get(name).attrs["HostConfig"]["Memory"] == 64 << 20
        container.pause()
        container.unpause()
        container.rename(f"{name}x")
        container.update(cpu_shares=512)
        assert container.top()["Processes"]
        assert container.stats(stream=False)["memory_stats"]["usage"] > 0
        samples = container.stats(decode=True)
        assert next(samples)["id"] == container.id
        samples.close()
        container.stop(timeout=5)
        assert container.wait()["StatusCode"] == 3
        container.start()
        container.kill()
        container.reload()
        assert container.status == "exited"
        assert container.wait(condition="not-running")["StatusCode"] == 137
    finally:
        container.remove(v=True, force=True)
    with pytest.raises(docker.errors.NotFound, match="No such container"):
        client.containers.get(name)


def test_logs_stream(daemon: Daemon, client: docker.DockerClient) -> None:
    container = client.containers.run(
        IMAGE, ["sh", "-c", "for n in 1 2 3; do echo $n; sleep 0.1; done; echo e >&2"], detach=True, network_mode="none"
    )
    try:
        assert b"".join(container.logs(stream=True, follow=True, stderr=False)) == b"1\n2\n3\n"
        assert container.logs(stdout=False) == b"e\n"
    finally:
        container.remove(force=True)


def test_a_wait_ends_with_the_run_though_a_restart_follows(client: docker.DockerClient) -> None:
    container = client.containers.run(
        IMAGE, ["sh", "-c", "sleep 0.3; exit 4"], detach=True, network_mode="none", restart_policy={"Name": "always"}
    )
    try:
        assert container.wait(timeout=20)["StatusCode"] == 4
    finally:
        container.remove(force=True)


def test_the_start_of_an_exec_says_whether_its_stream_is_framed(client: docker.DockerClient) -> None:
    container = client.containers.run(IMAGE, ["sleep", "60"], detach=True, network_mode="none")
    try:
        for tty, expected in ((True, b"out\r\nerr\r\n"), (False, (b"out\n", b"err\n"))):
            made = client.api.exec_create(container.id, ["sh", "-c", "echo out; echo err >&2"], tty=tty)
            said = client.api.exec_start(made["Id"], tty=False, demux=not tty)  # framed, though there is a terminal
            assert said == expected
    finally:
        container.remove(force=True)


def test_an_archive_that_is_no_image(client: docker.DockerClient) -> None:
    with pytest.raises(docker.errors.ImageLoadError, match="tar"):
        client.images.load(b"abc")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # docker-py never closes a streamed exec
def test_exec(client: docker.DockerClient) -> None:
    container = client.containers.run(IMAGE, ["sleep", "60"], detach=True, network_mode="none")
    try:
        code, (out, err) = container.exec_run(["sh", "-c", "echo o; echo e >&2; exit 6"], demux=True)
        assert (code, out, err) == (6, b"o\n", b"e\n")
        assert container.exec_run("id -u", user="1000").output == b"1000\n"
        assert container.exec_run("cat", tty=False, stream=False, stdin=False).exit_code == 0
        assert b"".join(container.exec_run(["echo", "streamed"], stream=True).output) == b"streamed\n"
        gc.collect()
        made = client.api.exec_create(container.id, ["cat"], stdin=True)
        connection = client.api.exec_start(made["Id"], socket=True)
        raw: socket.socket = connection._sock
        data = os.urandom(300_000)
        sender = threading.Thread(target=lambda: (raw.sendall(data), raw.shutdown(socket.SHUT_WR)))
        sender.start()
        got = b"".join(chunk for stream, chunk in docker.utils.socket.frames_iter(connection, tty=False) if stream == 1)
        sender.join()
        connection.close()
        raw.close()
        assert got == data
        shown = client.api.exec_inspect(made["Id"])
        assert (shown["ExitCode"], shown["Running"], shown["ProcessConfig"]["entrypoint"]) == (0, False, "cat")
        with pytest.raises(docker.errors.APIError, match="has already run"):
            client.api.exec_start(made["Id"])
    finally:
        container.remove(force=True)


def test_attach_before_start_misses_nothing(client: docker.DockerClient) -> None:
    container = client.containers.create(IMAGE, ["cat"], stdin_open=True, network_mode="none")
    try:
        connection = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
        container.start()
        raw: socket.socket = connection._sock
        raw.sendall(b"typed\n")
        frames = docker.utils.socket.frames_iter(connection, tty=False)
        assert next(frames) == (1, b"typed\n")
        connection.close()
        raw.close()
        container.reload()
        assert container.status == "running"  # its input was kept open, as nobody said stdin_once
    finally:
        container.remove(force=True)


def test_archives(client: docker.DockerClient) -> None:
    container = client.containers.create(IMAGE, ["cat", "/tmp/f"], network_mode="none")
    try:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            info = tarfile.TarInfo("f")
            info.size, info.uid = 5, 1234
            tar.addfile(info, io.BytesIO(b"hello"))
        assert container.put_archive("/tmp", packed.getvalue())
        chunks, stat = container.get_archive("/tmp/f")
        assert (stat["name"], stat["size"], stat["linkTarget"]) == ("f", 5, "")
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
            assert tar.getmember("f").uid == 1234
        container.start()
        container.wait()
        assert container.logs() == b"hello"
        assert {"Path": "/tmp/f", "Kind": 1} in container.diff()
        with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as tar:
            assert any(name.endswith("tmp/f") for name in tar.getnames())
        image = container.commit(repository="fromdockerpy", tag="1", changes="ENV X=y")
        assert "X=y" in image.attrs["Config"]["Env"]
        client.images.remove("fromdockerpy:1")
    finally:
        container.remove(force=True)


def test_images(daemon: Daemon, client: docker.DockerClient) -> None:
    image = client.images.get(IMAGE)
    name = daemon.name()
    assert image.tag(name, "2")
    assert f"{name}:2" in client.images.get(f"{name}:2").tags
    assert image.id in [each.id for each in client.images.list(name=f"{name}:2")]
    packed = b"".join(client.images.get(f"{name}:2").save(named=f"{name}:2"))
    client.images.remove(f"{name}:2")
    with pytest.raises(docker.errors.ImageNotFound):
        client.images.get(f"{name}:2")
    [loaded] = client.images.load(packed)
    assert loaded.id == image.id and loaded.history()
    client.images.remove(f"{name}:2")


def test_networks_and_volumes(daemon: Daemon, client: docker.DockerClient) -> None:
    name = daemon.name()
    octet = int(daemon.tag[4:], 16)
    ipam = docker.types.IPAMConfig(pool_configs=[docker.types.IPAMPool(subnet=f"172.29.{octet}.0/24")])
    network = client.networks.create(name, ipam=ipam, labels={"x": "y"})
    volume = client.volumes.create(name, labels={"x": "y"})
    container = client.containers.run(
        IMAGE, ["sleep", "60"], detach=True, network=name, volumes={name: {"bind": "/v", "mode": "rw"}}
    )
    try:
        network.reload()
        assert [each.id for each in network.containers] == [container.id]
        network.disconnect(container)
        network.connect(container, aliases=["again"])
        assert [each.id for each in client.volumes.list(filters={"label": "x=y"})] == [name]
        with pytest.raises(docker.errors.APIError, match="volume is in use"):
            volume.remove()
    finally:
        container.remove(force=True)
        volume.remove()
        network.remove()


def test_events(daemon: Daemon, client: docker.DockerClient) -> None:
    with contextlib.closing(docker.DockerClient(base_url=f"unix://{daemon.socket}")) as listener:
        stream = listener.events(decode=True, filters={"type": "container"})
        name = daemon.name()
        container = client.containers.create(IMAGE, name=name, network_mode="none")
        container.remove()
        seen = []
        for event in stream:
            if event["Actor"]["Attributes"].get("name") == name:
                seen.append(event["Action"])
            if seen[-1:] == ["destroy"]:
                break
        stream.close()
    assert seen == ["create", "destroy"]


def test_a_terminal_over_a_socket(client: docker.DockerClient) -> None:
    container = client.containers.create(IMAGE, ["sh"], tty=True, stdin_open=True, network_mode="none")
    try:
        connection = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
        container.start()
        container.resize(height=30, width=91)
        raw: socket.socket = connection._sock
        seen = b""

        def read_until(text: bytes) -> None:
            nonlocal seen
            raw.settimeout(20)
            while text not in seen:
                chunk = raw.recv(4096)
                assert chunk, seen
                seen += chunk

        read_until(b"# ")
        raw.sendall(b"stty size\n")
        read_until(b"30 91\r\n")
        raw.sendall(b"exit 2\n")
        assert container.wait()["StatusCode"] == 2
        connection.close()
        raw.close()
        until(lambda: container.logs().endswith(b"exit 2\r\n"))
    finally:
        container.remove(force=True)
