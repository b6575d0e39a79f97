"""The `oci` driver: containers. See `driver` for its life cycle, `spec` for what a container is made of."""

from insula.drivers.oci.driver import OciDriver

DRIVER = OciDriver

__all__ = ["DRIVER", "OciDriver"]
