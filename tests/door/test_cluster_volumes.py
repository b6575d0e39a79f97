"""What containers are given: volumes and environment, by kubectl against a whole running Insula."""

from __future__ import annotations

import base64

import pytest

from door.cluster_support import Space, container, insula, pod, space, until

__all__ = ["insula", "space"]
pytestmark = pytest.mark.root


def config(name: str, **data: str) -> dict[str, object]:
    """A ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, **data: str) -> dict[str, object]:
    """A Secret."""
    coded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": coded}


def sh(space: Space, script: str, inner: str = "c") -> str:
    """What a script in pod `p` prints."""
    return space.text("exec", "p", "-c", inner, "--", "sh", "-c", script)


def test_config_maps_and_secrets_as_files_follow_their_objects(space: Space) -> None:
    volumes = [
        {"name": "m", "configMap": {"name": "m", "items": [{"key": "a", "path": "deep/a.txt", "mode": 0o400}]}},
        {"name": "all", "configMap": {"name": "m"}},
        {"name": "s", "secret": {"secretName": "s", "defaultMode": 0o440}},
        {"name": "o", "configMap": {"name": "nosuch", "optional": True}},
    ]
    mounts = [{"name": v["name"], "mountPath": f"/{v['name']}"} for v in volumes]
    mounts.append({"name": "all", "mountPath": "/single", "subPath": "a"})
    space.apply(config("m", a="1", b="2"), secret("s", key="hush"))
    space.apply(pod("p", container("c", volumeMounts=mounts), volumes=volumes))
    space.ready("p")
    assert sh(space, "cat /m/deep/a.txt /all/b /s/key /single") == "12hush1"
    assert sh(space, "stat -Lc %a /m/deep/a.txt /s/key") == "400\n440"
    assert sh(space, "ls /o; touch /m/x 2>&1 || true").endswith("Read-only file system")
    space.apply(config("m", a="3", c="4"))
    until(lambda: sh(space, "cat /m/deep/a.txt /all/c 2>/dev/null; ls /all") == "34a\nc")
    assert sh(space, "cat /single") == "1"


def test_a_pod_waits_for_a_config_map_and_begins_when_it_comes(space: Space) -> None:
    space.apply(
        pod(
            "p",
            container("c", volumeMounts=[{"name": "m", "mountPath": "/m"}]),
            volumes=[{"name": "m", "configMap": {"name": "m"}}],
        ),
        pod("q", container("c", envFrom=[{"configMapRef": {"name": "m"}}])),
    )
    until(
        lambda: any(
            'configmap "m" not found' in message for reason, message in space.events("p") if reason == "FailedMount"
        )
    )
    until(
        lambda: space.status("q", "c").get("state", {}).get("waiting", {}).get("reason") == "CreateContainerConfigError"
    )
    space.apply(config("m", a="1"))
    space.ready("p", "q")
    assert space.status("q", "c")["restartCount"] == 0


def test_projected_and_downward_volumes(space: Space) -> None:
    sources = [
        {"configMap": {"name": "m"}},
        {"secret": {"name": "s"}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"serviceAccountToken": {"path": "token", "audience": "me", "expirationSeconds": 600}},
    ]
    space.apply(config("m", a="1"), secret("s", b="2"))
    wish = pod(
        "p",
        container("c", volumeMounts=[{"name": "v", "mountPath": "/v"}]),
        volumes=[{"name": "v", "projected": {"sources": sources}}],
    )
    wish["metadata"]["labels"] = {"one": "1"}
    space.apply(wish)
    space.ready("p")
    assert sh(space, "cat /v/a /v/b /v/labels") == '12one="1"'
    claims = sh(space, "cut -d. -f2 /v/token")
    assert '"me"' in base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)).decode()
    space.run("label", "pod", "p", "two=2")
    until(lambda: sh(space, "cat /v/labels") == 'one="1"\ntwo="2"')


def test_empty_folders_are_shared_and_can_be_in_memory(space: Space) -> None:
    volumes = [{"name": "d", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]
    mounts = [{"name": "d", "mountPath": "/d"}, {"name": "m", "mountPath": "/m"}]
    reader = container("r", volumeMounts=[{"name": "d", "mountPath": "/seen", "readOnly": True}])
    space.apply(pod("p", container("c", volumeMounts=mounts), reader, volumes=volumes))
    space.ready("p")
    sh(space, "echo shared > /d/f")
    assert sh(space, "cat /seen/f", "r") == "shared"
    assert "Read-only" in sh(space, "touch /seen/x 2>&1 || true", "r")
    assert "tmpfs" in sh(space, "df /m")
    assert "No space left" in sh(space, "dd if=/dev/zero of=/m/f bs=1024 count=2000 2>&1 || true")


def test_host_paths_and_their_types(space: Space) -> None:
    folder = space.insula.root / f"host-{space.name}"
    volume = {"name": "h", "hostPath": {"path": str(folder), "type": "DirectoryOrCreate"}}
    mounts = [{"name": "h", "mountPath": "/h"}, {"name": "h", "mountPath": "/below", "subPathExpr": "$(WHO)/x"}]
    env = [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    space.apply(pod("p", container("c", volumeMounts=mounts, env=env), volumes=[volume]))
    space.ready("p")
    sh(space, "echo up > /h/f; echo sub > /below/g")
    assert (folder / "f").read_text() == "up\n"
    assert (folder / "p/x/g").read_text() == "sub\n"
    wrong = {"name": "h", "hostPath": {"path": "/etc/passwd", "type": "Directory"}}
    space.apply(pod("q", container("c", volumeMounts=[{"name": "h", "mountPath": "/h"}]), volumes=[wrong]))
    until(lambda: any("hostPath type check failed" in message for _, message in space.events("q")))


def test_environment_from_everywhere(space: Space) -> None:
    space.apply(config("m", A="from map", B="2"), secret("s", S="secret"))
    env = [
        {"name": "PLAIN", "value": "x"},
        {"name": "EXPANDED", "value": "$(PLAIN)-$(PRE_A)-$(NOSUCH)-$$(PLAIN)"},
        {"name": "ONE", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "B"}}},
        {"name": "TWO", "valueFrom": {"secretKeyRef": {"name": "s", "key": "S"}}},
        {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "nosuch", "key": "B", "optional": True}}},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
    ]
    main = container("c", env=env, resources={"limits": {"cpu": "250m", "memory": "32Mi"}})
    main["envFrom"] = [{"configMapRef": {"name": "m"}, "prefix": "PRE_"}, {"secretRef": {"name": "s"}}]
    space.apply(pod("p", main))
    space.ready("p")
    found = dict(line.split("=", 1) for line in sh(space, "env").splitlines() if "=" in line)
    assert found["PRE_A"] == "from map" and found["S"] == "secret"
    assert found["EXPANDED"] == "x-from map-$(NOSUCH)-$(PLAIN)"
    assert (found["ONE"], found["TWO"], found["NAME"], found["CPU"]) == ("2", "secret", "p", "250")
    assert "NONE" not in found
    assert found["IP"] == space.get("pod", "p")["status"]["podIP"]
    assert found["NODE"] == space.get("pod", "p")["spec"]["nodeName"]
    assert found["HOSTNAME"] == "p"


def test_limits_reach_the_kernel_and_an_oom_kill_is_named(space: Space) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=64M count=1"
    space.apply(pod("p", container("c", script, resources={"limits": {"memory": "16Mi"}}), restartPolicy="Never"))
    ended = space.phase("p", "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended["reason"] == "OOMKilled"


def test_containers_of_a_pod_share_their_network_and_host_name(space: Space) -> None:
    server = container("s", "trap exit TERM; while :; do echo hi | nc -l -p 9000; done & wait")
    space.apply(
        pod("p", container("c"), server, hostname="chosen", hostAliases=[{"ip": "10.9.8.7", "hostnames": ["alias"]}])
    )
    space.ready("p")
    assert until(lambda: sh(space, "nc -w 1 127.0.0.1 9000 || true")) == "hi"
    assert sh(space, "hostname") == sh(space, "hostname", "s") == "chosen"
    assert "10.9.8.7" in sh(space, "grep alias /etc/hosts")


def test_a_host_port_is_open_on_the_node(space: Space) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = container("c", "trap exit TERM; while :; do echo hi | nc -l -p 9000; done & wait")
    server["ports"] = [{"containerPort": 9000, "hostPort": port}]
    space.apply(pod("p", server))
    space.ready("p")

    def ask() -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", port), 2) as connection:
                return connection.recv(10)
        except OSError:
            return b""

    assert until(ask) == b"hi\n"
    space.apply(pod("q", {**server, "name": "c"}))
    until(lambda: any("didn't have free ports" in message for _, message in space.events("q")))
