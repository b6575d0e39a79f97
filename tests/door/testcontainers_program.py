"""A test suite of somebody else's, in a process of its own: testcontainers closes none of its clients."""

import urllib.request

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

IMAGE = "busybox"


def main() -> None:
    with Network() as network:
        server = DockerContainer(IMAGE).with_command("sh -c 'echo ready; exec httpd -f -p 80 -h /etc'")
        server = server.with_exposed_ports(80).with_network(network).with_network_aliases("web").with_env("A", "1")
        with server.waiting_for(LogMessageWaitStrategy("ready")):
            url = f"http://{server.get_container_host_ip()}:{server.get_exposed_port(80)}/hostname"
            name = urllib.request.urlopen(url, timeout=5).read()
            assert name.decode().strip() == server.get_wrapped_container().short_id
            assert server.exec(["sh", "-c", "echo $A"]).output == b"1\n"
            with DockerContainer(IMAGE).with_command("wget -qO- http://web/hostname").with_network(network) as asker:
                assert asker.get_wrapped_container().wait()["StatusCode"] == 0
                assert asker.get_logs() == (name, b"")
    print("all of it holds")


if __name__ == "__main__":
    main()
