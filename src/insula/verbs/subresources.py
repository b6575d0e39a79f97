"""Subresources that are deeds, not parts: what a POST to them does."""

from __future__ import annotations

from insula.verbs.request import Handler

HANDLERS: dict[tuple[str, str, str], Handler] = {}
"""By group, plural and subresource ("" for creations of kinds that are not stored)."""
