"""Docker Compose v2, unmodified: whole projects, from `up` to `down -v`."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from door.docker_support import IMAGE, Daemon, running, until

pytestmark = pytest.mark.root

SHOP = """
services:
  db:
    image: IMAGE
    command: ["sh", "-c", "sleep 0.4; touch /tmp/ready; exec httpd -f -p 80 -h /srv"]
    stop_grace_period: 0s
    volumes: [data:/srv]
    networks: {back: {aliases: [store]}}
    configs: [{source: page, target: /srv/index.html}]
    secrets: [word]
    environment: {WORD_FILE: /run/secrets/word}
    healthcheck: {test: ["CMD-SHELL", "test -e /tmp/ready"], interval: 200ms, retries: 20}
  once:
    image: IMAGE
    command: ["sh", "-c", "echo prepared > /v/prepared"]
    network_mode: none
    volumes: [data:/v]
  web:
    image: IMAGE
    depends_on:
      db: {condition: service_healthy}
      once: {condition: service_completed_successfully}
    command: ["sh", "-c", "wget -qO- http://store/index.html; wget -qO- http://db/prepared; exec httpd -f -p 80 -h /etc"]
    stop_grace_period: 0s
    ports: ["127.0.0.1::80"]
    networks: [back, front]
    labels: {version: "${VERSION:-1}"}
  extra:
    image: IMAGE
    profiles: [more]
    command: ["sleep", "100"]
    stop_grace_period: 0s
    network_mode: none
networks: {back: {internal: true}, front: {}}
volumes: {data: {labels: {kept: "no"}}}
configs: {page: {content: "from a config\\n"}}
secrets: {word: {file: ./word}}
""".replace("IMAGE", IMAGE)


class Project:
    """One Compose project in a folder of its own."""

    def __init__(self, daemon: Daemon, folder: Path, text: str) -> None:
        self.daemon = daemon
        self.name = daemon.name()
        self.file = folder / "compose.yaml"
        self.file.write_text(text)

    def run(self, *arguments: str, check: int | None = 0, **more: Any) -> str:
        """`docker compose ARGUMENTS`: what it printed."""
        words = ("compose", "-p", self.name, "-f", str(self.file), "--progress", "plain", *arguments)
        done = self.daemon.docker(*words, check=check, timeout_s=90, **more)
        return (done.stdout + done.stderr).decode()

    def ps(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """Containers by name."""
        lines = self.daemon.text(
            "compose", "-p", self.name, "-f", str(self.file), "ps", "-a", "--format", "json", *arguments
        )
        return {each["Name"].removeprefix(f"{self.name}-"): each for each in map(json.loads, lines.splitlines())}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    for served in running():
        served.plug("docker-compose")
        yield served


@pytest.fixture
def project(daemon: Daemon, tmp_path: Path) -> Iterator[Any]:
    made: list[Project] = []

    def make(text: str) -> Project:
        made.append(Project(daemon, tmp_path, text))
        return made[-1]

    yield make
    for each in made:
        each.run("--profile", "*", "down", "-v", "-t", "0", "--remove-orphans", check=None)


def test_a_project_from_up_to_down(daemon: Daemon, project: Any, tmp_path: Path) -> None:
    (tmp_path / "word").write_text("secret word\n")
    shop: Project = project(SHOP)
    shop.run("up", "--wait", "--scale", "web=2")
    there = shop.ps()
    assert {name: each["State"] for name, each in there.items()} == {
        "db-1": "running", "once-1": "exited", "web-1": "running", "web-2": "running",
    }  # fmt: skip
    assert there["db-1"]["Health"] == "healthy" and there["once-1"]["ExitCode"] == 0
    for number in ("1", "2"):
        address = shop.run("port", "--index", number, "web", "80").strip()
        assert urllib.request.urlopen(f"http://{address}/hostname", timeout=5).read()
        assert "from a config" in (logs := shop.run("logs", "--no-log-prefix", "web")) and "prepared" in logs
    assert shop.run("exec", "-T", "db", "sh", "-c", "cat $WORD_FILE") == "secret word\n"
    assert shop.run("exec", "-T", "web", "nslookup", "nowhere.invalid", check=None)
    assert "httpd" in shop.run("top", "db")
    before = {name: each["ID"] for name, each in there.items()}

    shop.run("up", "--wait", "--scale", "web=2")  # nothing changed, nothing is made again
    assert {name: each["ID"] for name, each in shop.ps().items()} == before

    shop.run("up", "--wait", "--scale", "web=2", env={"VERSION": "2"})  # a changed service alone is
    after = {name: each["ID"] for name, each in shop.ps().items()}
    assert after["db-1"] == before["db-1"]
    assert not {after["web-1"], after["web-2"]} & {before["web-1"], before["web-2"]}

    shop.run("up", "-d", "--scale", "web=1", env={"VERSION": "2"})
    assert set(shop.ps()) == {"db-1", "once-1", "web-1"}
    assert "extra-1" not in shop.ps()
    shop.run("--profile", "more", "up", "-d", "extra", env={"VERSION": "2"})
    assert shop.ps()["extra-1"]["State"] == "running"
    assert any(each["Name"] == shop.name for each in json.loads(shop.run("ls", "--format", "json")))

    shop.run("--profile", "more", "down", "-v")
    for kind in ("container", "network", "volume"):
        assert not daemon.text(kind, "ls", "-q", "--filter", f"label=com.docker.compose.project={shop.name}")


def test_life_of_services(daemon: Daemon, project: Any) -> None:
    one: Project = project(f"""
services:
  s:
    image: {IMAGE}
    command: ["sh", "-c", "trap 'exit 3' TERM; echo begun; while :; do sleep 0.1; done"]
    network_mode: none
""")
    one.run("up", "-d")
    one.run("pause")
    assert one.ps()["s-1"]["State"] == "paused"
    one.run("unpause")
    one.run("restart")
    assert one.run("logs", "--no-log-prefix", "s").count("begun") == 2
    one.run("stop")
    assert one.ps()["s-1"]["ExitCode"] == 3
    one.run("start")
    one.run("kill", "-s", "KILL")
    assert one.ps()["s-1"]["ExitCode"] == 137
    one.run("cp", str(one.file), "s:/root/")
    one.run("start")
    assert "services" in one.run("exec", "-T", "s", "cat", "/root/compose.yaml")
    assert one.run("run", "--rm", "-T", "s", "sh", "-c", "cat; exit 5", check=5, input="piped\n") == "piped\n"
    one.run("rm", "-sf")
    assert not one.ps()
    assert one.name not in daemon.text("ps", "-a", "--format", "{{.Names}}")


def test_following_logs_and_exit_codes(project: Any) -> None:
    two: Project = project(f"""
services:
  talk:
    image: {IMAGE}
    command: ["sh", "-c", "for n in 1 2 3; do echo line $$n; sleep 0.1; done; exit 7"]
    network_mode: none
  other:
    image: {IMAGE}
    command: ["sleep", "100"]
    init: true
    network_mode: none
""")
    said = two.run("up", "--exit-code-from", "talk", "--no-color", check=7)
    assert [f"line {n}" for n in (1, 2, 3)] == [line.split("| ")[1] for line in said.splitlines() if "| line" in line]
    assert two.ps()["other-1"]["State"] == "exited"
    assert "line 3" in two.run("logs", "-f", "talk")


def test_a_service_that_gets_not_healthy_fails_the_wait(project: Any) -> None:
    ill: Project = project(f"""
services:
  ill:
    image: {IMAGE}
    command: ["sleep", "100"]
    init: true
    network_mode: none
    healthcheck: {{test: ["CMD", "false"], interval: 100ms, retries: 2}}
  after:
    image: {IMAGE}
    command: ["true"]
    network_mode: none
    depends_on: {{ill: {{condition: service_healthy}}}}
""")
    begun = time.monotonic()
    assert "unhealthy" in ill.run("up", "-d", check=1)
    assert time.monotonic() - begun < 30
    assert ill.ps()["after-1"]["State"] == "created"


def test_networks_of_a_project(project: Any) -> None:
    nets: Project = project(f"""
services:
  fixed:
    image: {IMAGE}
    command: ["sleep", "100"]
    init: true
    hostname: chosen
    extra_hosts: ["else.where:192.0.2.9"]
    dns_search: [example.test]
    networks:
      one: {{ipv4_address: 10.213.7.77}}
  other:
    image: {IMAGE}
    command: ["sleep", "100"]
    init: true
    networks: [two]
  shared:
    image: {IMAGE}
    command: ["sleep", "100"]
    init: true
    network_mode: service:fixed
networks:
  one: {{ipam: {{config: [{{subnet: 10.213.7.0/24}}]}}}}
  two: {{}}
""")
    nets.run("up", "-d")
    for service in ("fixed", "shared"):
        assert "10.213.7.77" in nets.run("exec", "-T", service, "ip", "-4", "addr")
    hosts = nets.run("exec", "-T", "fixed", "cat", "/etc/hosts")
    assert "chosen" in hosts and "192.0.2.9\telse.where" in hosts
    assert "example.test" in nets.run("exec", "-T", "fixed", "cat", "/etc/resolv.conf")
    assert "bad address" in nets.run("exec", "-T", "other", "ping", "-c", "1", "-w", "1", "fixed", check=None)


def test_a_project_that_is_built(daemon: Daemon, project: Any, tmp_path: Path) -> None:
    daemon.plug("docker-buildx")
    (tmp_path / "said").write_text("first")
    (tmp_path / "key").write_text("hidden")
    own: Project = project(f"""
services:
  app:
    build:
      context: .
      dockerfile_inline: |
        FROM {IMAGE}
        RUN --mount=type=secret,id=key wc -c < /run/secrets/key > /size
        COPY said /
        CMD ["cat", "/said", "/size"]
      secrets: [key]
    network_mode: none
secrets: {{key: {{file: ./key}}}}
""")
    assert "first6" in own.run("up", "--build", "--no-log-prefix").replace("\n", "")
    (tmp_path / "said").write_text("second")
    assert "second6" in own.run("up", "--build", "--no-log-prefix").replace("\n", "")
    own.run("down", "--rmi", "all")
    assert own.name not in daemon.text("image", "ls")


def test_watching_syncs_files(daemon: Daemon, project: Any, tmp_path: Path) -> None:
    daemon.plug("docker-buildx")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "page").write_text("old")
    live: Project = project(f"""
services:
  app:
    build: {{context: ., dockerfile_inline: "FROM {IMAGE}\\nCOPY web /web\\nCMD [\\"sleep\\", \\"100\\"]"}}
    init: true
    network_mode: none
    develop: {{watch: [{{action: sync, path: ./web, target: /web}}]}}
""")
    live.run("up", "-d", "--build")
    words = ("compose", "-p", live.name, "-f", str(live.file), "watch", "--no-up")
    with daemon.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as watching:
        assert watching.stdout is not None
        try:
            while b"enabled" not in watching.stdout.readline():
                assert watching.poll() is None
            (tmp_path / "web" / "page").write_text("new")
            until(lambda: live.run("exec", "-T", "app", "cat", "/web/page") == "new")
        finally:
            watching.terminate()
