"""The life of pods by kubectl against a whole running Insula: probes, init containers, restarts, graceful ends, refusals."""

from __future__ import annotations

import time

import pytest

from door.cluster_support import Shell, Space, container, insula, pod, space, until

__all__ = ["insula", "space"]
pytestmark = pytest.mark.root
SHARED = {"volumes": [{"name": "v", "emptyDir": {}}]}
MOUNT = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}


def state(space: Space, name: str, inner: str = "c", part: str = "containerStatuses") -> tuple[str, str]:
    """(running, waiting or terminated; the reason)."""
    found = space.status(name, inner, part).get("state") or {}
    return next(((word, detail.get("reason", "")) for word, detail in found.items()), ("", ""))


def condition(space: Space, name: str, type_: str) -> str:
    """A condition's status."""
    found = space.get("pod", name)["status"].get("conditions", [])
    return next((one["status"] for one in found if one["type"] == type_), "")


# --- restart policies -------------------------------------------------------------------------------------------


def test_never_runs_once_and_ends_as_it_ended(space: Space) -> None:
    space.apply(
        pod("good", container("c", "exit 0"), restartPolicy="Never"),
        pod("bad", container("c", "exit 3"), container("d", "exit 0"), restartPolicy="Never"),
    )
    assert space.phase("good", "Succeeded", "Failed")["status"]["phase"] == "Succeeded"
    bad = space.phase("bad", "Succeeded", "Failed")
    assert bad["status"]["phase"] == "Failed"
    ended = {c["name"]: c["state"]["terminated"] for c in bad["status"]["containerStatuses"]}
    assert (ended["c"]["exitCode"], ended["c"]["reason"]) == (3, "Error")
    assert (ended["d"]["exitCode"], ended["d"]["reason"]) == (0, "Completed")
    assert [c["restartCount"] for c in bad["status"]["containerStatuses"]] == [0, 0]


def test_on_failure_starts_again_until_it_succeeds(space: Space) -> None:
    script = "echo x >> /v/f; test $(wc -l < /v/f) -ge 2"
    space.apply(pod("p", container("c", script, **MOUNT), restartPolicy="OnFailure", **SHARED))
    assert space.phase("p", "Succeeded")["status"]["containerStatuses"][0]["restartCount"] == 1


def test_a_crash_loop_backs_off_and_says_so(space: Space) -> None:
    space.apply(pod("p", container("c", "exit 1")))
    until(lambda: state(space, "p") == ("waiting", "CrashLoopBackOff"))
    found = space.status("p", "c")
    assert found["restartCount"] == 1
    assert found["lastState"]["terminated"]["exitCode"] == 1
    assert not found["ready"]
    assert "CrashLoopBackOff" in space.text("get", "pod", "p")
    assert space.get("pod", "p")["status"]["phase"] == "Running"


def test_a_command_that_cannot_start_is_a_start_error(space: Space) -> None:
    space.apply(pod("p", {**container("c"), "command": ["nosuchprogram"]}, restartPolicy="Never"))
    ended = space.phase("p", "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("StartError", 128)
    assert "nosuchprogram" in ended["message"]


def test_an_image_that_is_not_there(space: Space) -> None:
    never = {**container("c"), "image": "nosuch:1", "imagePullPolicy": "Never"}
    missing = {**container("c"), "image": "127.0.0.1:1/no/such:1"}
    space.apply(pod("never", never), pod("missing", missing))
    until(lambda: state(space, "never") == ("waiting", "ErrImageNeverPull"))
    until(lambda: state(space, "missing")[1] in ("ErrImagePull", "ImagePullBackOff"))
    until(lambda: "Failed" in {reason for reason, _ in space.events("missing")})


def test_the_termination_message_is_read_from_its_file_or_the_log(space: Space) -> None:
    space.apply(
        pod("file", container("c", "echo -n done well > /dev/termination-log"), restartPolicy="Never"),
        pod(
            "log",
            container("c", "echo last words; exit 1", terminationMessagePolicy="FallbackToLogsOnError"),
            restartPolicy="Never",
        ),
    )
    ended = space.phase("file", "Succeeded")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended["message"] == "done well"
    ended = space.phase("log", "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended["message"] == "last words\n"


# --- init containers and sidecars -------------------------------------------------------------------------------


def test_init_containers_run_in_order_before_the_others(space: Space) -> None:
    first = container("first", "sleep 0.2; echo first >> /v/f", **MOUNT)
    second = container("second", "echo second >> /v/f", **MOUNT)
    main = container("c", "echo main >> /v/f; cat /v/f; sleep 1000", **MOUNT)
    space.apply(pod("p", main, initContainers=[first, second], **SHARED))
    space.ready("p")
    until(lambda: space.logs("p", "-c", "c") == "first\nsecond\nmain\n")
    assert condition(space, "p", "Initialized") == "True"


def test_a_failing_init_container_holds_the_pod_back(space: Space) -> None:
    space.apply(pod("p", container("c"), initContainers=[container("i", "exit 1")]))
    until(lambda: state(space, "p", "i", "initContainerStatuses") == ("waiting", "CrashLoopBackOff"))
    assert state(space, "p") == ("waiting", "PodInitializing")
    assert "Init:CrashLoopBackOff" in space.text("get", "pod", "p")
    space.apply(pod("q", container("c"), initContainers=[container("i", "exit 1")], restartPolicy="Never"))
    assert space.phase("q", "Failed")


def test_a_sidecar_starts_first_goes_on_and_ends_last(space: Space) -> None:
    sidecar = container("s", "trap 'echo side >> /v/f; exit 0' TERM; while :; do sleep 1000 & wait; done", **MOUNT)
    sidecar["restartPolicy"] = "Always"
    main = container("c", "test -e /v && echo main >> /v/f; sleep 0.5", **MOUNT)
    host = {
        "volumes": [
            {"name": "v", "hostPath": {"path": f"{space.insula.root}/{space.name}", "type": "DirectoryOrCreate"}}
        ]
    }
    space.apply(pod("p", main, initContainers=[sidecar], restartPolicy="Never", **host))
    found = space.phase("p", "Succeeded", "Failed")
    assert found["status"]["phase"] == "Succeeded"
    assert (space.insula.root / space.name / "f").read_text() == "main\nside\n"


# --- probes -----------------------------------------------------------------------------------------------------


def test_readiness_gates_ready_and_comes_and_goes(space: Space) -> None:
    probe = {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1}
    space.apply(pod("p", container("c", readinessProbe=probe)))
    until(lambda: state(space, "p")[0] == "running")
    assert condition(space, "p", "Ready") == "False"
    space.run("exec", "p", "--", "touch", "/tmp/ready")
    space.ready("p")
    space.run("exec", "p", "--", "rm", "/tmp/ready")
    until(lambda: condition(space, "p", "Ready") == "False")
    assert space.status("p", "c")["restartCount"] == 0
    until(lambda: "Unhealthy" in {reason for reason, _ in space.events("p")})


def test_a_pod_is_never_ready_before_its_readiness_probe_has_passed(space: Space) -> None:
    probe = {"exec": {"command": ["true"]}, "initialDelaySeconds": 2}
    hook = {"postStart": {"exec": {"command": ["sleep", "0.5"]}}}
    space.apply(pod("p", container("c", readinessProbe=probe, lifecycle=hook)))
    until(lambda: state(space, "p")[0] == "running")
    began = time.monotonic()
    while time.monotonic() - began < 1.2:
        assert condition(space, "p", "Ready") == "False"
    space.ready("p")


def test_liveness_restarts_what_hangs(space: Space) -> None:
    probe = {"exec": {"command": ["test", "-e", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 1}
    script = "touch /tmp/alive; trap 'exit 0' TERM; sleep 1; rm /tmp/alive; while :; do sleep 1000 & wait; done"
    space.apply(pod("p", container("c", script, livenessProbe=probe)))
    until(lambda: space.status("p", "c").get("restartCount", 0) >= 1)
    assert any("Liveness probe failed" in message for _, message in space.events("p"))


def test_http_and_tcp_probes_reach_the_pod(space: Space) -> None:
    script = "mkdir /www; echo ok > /www/ok; httpd -p 8080 -h /www; trap exit TERM; sleep 1000 & wait"
    http = {"httpGet": {"path": "/ok", "port": "web"}, "periodSeconds": 1}
    tcp = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    ports = [{"name": "web", "containerPort": 8080}]
    space.apply(pod("p", container("c", script, readinessProbe=http, livenessProbe=tcp, ports=ports)))
    space.ready("p")
    space.apply(pod("q", container("c", script, readinessProbe={**http, "httpGet": {"path": "/no", "port": 8080}})))
    until(lambda: any("statuscode: 404" in message for _, message in space.events("q")))
    assert condition(space, "q", "Ready") == "False"


def test_the_startup_probe_holds_the_others_back(space: Space) -> None:
    startup = {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 30}
    liveness = {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 1}
    space.apply(pod("p", container("c", startupProbe=startup, livenessProbe=liveness)))
    until(lambda: state(space, "p")[0] == "running")
    time.sleep(1.5)
    found = space.status("p", "c")
    assert (found["started"], found["ready"], found["restartCount"]) == (False, False, 0)
    space.run("exec", "p", "--", "touch", "/tmp/up")
    space.ready("p")
    assert space.status("p", "c")["started"] is True


# --- the end ----------------------------------------------------------------------------------------------------


def test_a_graceful_end_runs_the_hook_then_the_signal(space: Space) -> None:
    script = "trap 'echo term >> /v/f; exit 0' TERM; while :; do sleep 1000 & wait; done"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook >> /v/f"]}}}
    folder = space.insula.root / space.name
    volume = {"volumes": [{"name": "v", "hostPath": {"path": str(folder), "type": "DirectoryOrCreate"}}]}
    space.apply(pod("p", container("c", script, lifecycle=hook, **MOUNT), **volume) | {})
    space.ready("p")
    space.run("delete", "pod", "p", "--grace-period=10")
    assert (folder / "f").read_text() == "hook\nterm\n"


def test_what_does_not_end_in_time_is_killed(space: Space) -> None:
    space.apply(pod("p", container("c", "trap '' TERM; while :; do sleep 1000 & wait; done")))
    space.ready("p")
    began = time.monotonic()
    space.run("delete", "pod", "p", "--grace-period=1")
    assert 0.8 < time.monotonic() - began < 10


def test_a_shorter_grace_period_replaces_a_longer_one(space: Space) -> None:
    space.apply(pod("p", container("c", "trap '' TERM; while :; do sleep 1000 & wait; done")))
    space.ready("p")
    space.run("delete", "pod", "p", "--grace-period=60", "--wait=false")
    until(lambda: space.get("pod", "p")["metadata"].get("deletionTimestamp"))
    began = time.monotonic()
    space.run("delete", "pod", "p", "--grace-period=1")
    assert time.monotonic() - began < 20


def test_a_deadline_ends_the_pod(space: Space) -> None:
    space.apply(pod("p", container("c"), activeDeadlineSeconds=2))
    found = space.phase("p", "Failed")
    assert found["status"]["reason"] == "DeadlineExceeded"
    time.sleep(1)
    assert space.get("pod", "p")["status"]["phase"] == "Failed"


def test_a_finished_pod_keeps_its_logs_and_gives_its_network_back(space: Space) -> None:
    space.apply(pod("p", container("c", "echo bye"), restartPolicy="Never"))
    uid = space.phase("p", "Succeeded")["metadata"]["uid"]
    assert space.logs("p") == "bye\n"
    until(lambda: not list(space.insula.root.glob(f"**/netns/*{uid}*")))


# --- security ---------------------------------------------------------------------------------------------------


def test_security_context_is_obeyed(space: Space) -> None:
    context = {"runAsUser": 1234, "runAsGroup": 2345, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    script = "id -u; id -g; touch /x 2>&1; grep CapEff /proc/self/status; sleep 1000"
    space.apply(pod("p", container("c", script, securityContext=context), securityContext={"fsGroup": 3456}))
    until(lambda: "CapEff" in space.logs("p") if state(space, "p")[0] == "running" else False)
    said = space.logs("p")
    assert said.startswith("1234\n2345\n") and "Read-only file system" in said and "0000000000000000" in said


def test_run_as_non_root_refuses_an_image_of_root(space: Space) -> None:
    space.apply(pod("p", container("c", securityContext={"runAsNonRoot": True})))
    until(lambda: state(space, "p") == ("waiting", "CreateContainerConfigError"))
    waiting = space.status("p", "c")["state"]["waiting"]
    assert waiting["message"] == "container has runAsNonRoot and image will run as root"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"shareProcessNamespace": True}, "shareProcessNamespace"),
        ({"volumes": [{"name": "v", "nfs": {"server": "x", "path": "/"}}]}, "nfs is not supported"),
    ],
)
def test_what_this_node_cannot_do_is_said(space: Space, fields: dict[str, object], word: str) -> None:
    space.apply(pod("p", container("c"), **fields))
    until(lambda: any(word in message for _, message in space.events("p")))


def test_an_ephemeral_container_debugs_a_running_one(space: Space) -> None:
    space.apply(pod("p", container("c", "echo 1 > /tmp/x; exec sleep 4321")))
    space.ready("p")
    words = ("debug", "-it", "p", "--image=busybox:1", "--target=c", "--container=dbg", "--profile=general", "--", "sh")
    with Shell(space, *words) as shell:
        shell.expect(b"# ", 40)
        shell.send(b"ps | grep -c '[s]leep 4321'; exit\n")
        shell.expect(b"1\r\n", 20)
        shell.wait()
    until(lambda: state(space, "p", "dbg", "ephemeralContainerStatuses")[0] == "terminated")
    assert space.status("p", "c")["restartCount"] == 0
