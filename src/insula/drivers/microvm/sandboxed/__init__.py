"""What runs inside a machine's sandbox, under the host's Python without any package: so nothing but the standard library here,
and relative imports. Seen from the driver these are ordinary modules."""
