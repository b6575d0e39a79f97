"""Insula: one control plane for every level of virtualization."""

__version__ = "0.1.0"
