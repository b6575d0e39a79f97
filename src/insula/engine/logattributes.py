"""What a log says of its instance beside each line: labels, variables, a tag, as the options of a log driver choose. Pure.

Source: Docker's documentation of the json-file and journald drivers and of log tags. Of Go's template language a tag may hold
fields alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote_plus

from insula.errors import Invalid
from insula.images.contract import Image
from insula.model.instance import InstanceConfig
from insula.model.pattern import compile_pattern

JOURNALD = "journald"
_FIELD = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}")
_KNOWN = ("ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "DaemonName")


def check_options(options: Mapping[str, str]) -> None:
    """Raises Invalid for a tag or pattern that cannot be understood."""
    text = options.get("tag", "")
    for field in _FIELD.findall(text):
        if field.removeprefix(".") not in _KNOWN or not field.startswith("."):
            known = ", ".join("{{." + name + "}}" for name in _KNOWN)
            raise Invalid(
                f"failed to initialize logging driver: template: log-tag: {field!r} is not known here",
                hint=f"use {known}",
            )
    if re.search(r"\{\{|\}\}", _FIELD.sub("", text)):
        raise Invalid("failed to initialize logging driver: template: log-tag:1: unclosed action")
    for name in ("labels-regex", "env-regex"):
        _pattern(options.get(name, ""))


def tag_of(template: str, config: InstanceConfig, image: Image | None, id: str) -> str:
    """The tag with its fields filled in."""
    image_id = image.id.removeprefix("sha256:") if image else ""
    facts = {
        "ID": id[:12],
        "FullID": id,
        "Name": config.name,
        "ImageID": image_id[:12],
        "ImageFullID": f"sha256:{image_id}",
        "ImageName": config.image,
        "DaemonName": "docker",
    }
    return _FIELD.sub(lambda found: facts.get(found[1].removeprefix("."), ""), template)


def attributes(config: InstanceConfig, image: Image | None, id: str) -> dict[str, str]:
    """All that the options choose."""
    options = config.log_options
    labels = {**(image.config.labels if image else {}), **config.labels}
    pairs = (entry.partition("=") for entry in (*(image.config.env if image else ()), *config.env))
    env = {name: value for name, equals, value in pairs if equals}
    found = {
        **_chosen(labels, options.get("labels", ""), options.get("labels-regex", "")),
        **_chosen(env, options.get("env", ""), options.get("env-regex", "")),
    }
    if template := options.get("tag", ""):
        found["tag"] = tag_of(template, config, image, id)
    return found


def _chosen(values: Mapping[str, str], names: str, pattern: str) -> dict[str, str]:
    wanted: Sequence[str] = names.split(",") if names else ()
    test = _pattern(pattern)
    return {name: value for name, value in values.items() if name in wanted or (test is not None and test.search(name))}


def _pattern(text: str) -> re.Pattern[str] | None:
    """Raises Invalid."""
    try:
        return compile_pattern(text) if text else None
    except Invalid as fault:
        raise Invalid(f"failed to initialize logging driver: {fault.message}", field="log_options") from fault


def details(found: Mapping[str, str]) -> str:
    """As `docker logs --details` shows them before a line."""
    return ",".join(sorted(f"{quote_plus(name)}={quote_plus(value)}" for name, value in found.items()))
