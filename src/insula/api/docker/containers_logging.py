"""Log drivers and their options in Docker's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from insula.api.docker.words import LogConfig
from insula.errors import Invalid, Unsupported

_COMMON = frozenset({"mode", "max-buffer-size"})
_ATTRIBUTES = frozenset({"labels", "labels-regex", "env", "env-regex", "tag"})
_OPTIONS = {
    "json-file": _COMMON | _ATTRIBUTES | {"max-size", "max-file", "compress"},
    "local": _COMMON | {"max-size", "max-file", "compress"},
    "journald": _COMMON | {"tag"},
}
_JOURNAL = Path("/run/systemd/journal/socket")
_ELSEWHERE = frozenset({"syslog", "gelf", "fluentd", "awslogs", "splunk", "gcplogs", "etwlogs", "logentries"})
_UNKNOWN = {
    "json-file": "unknown log opt '{}' for json-file log driver",
    "local": "unknown log opt '{}' for log driver local",
    "journald": "unknown log opt '{}' for journald log driver",
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp])?i?b?", re.IGNORECASE)
_TRUTH = frozenset({"1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"})


def has_journal() -> bool:
    """Whether systemd-journald takes lines here."""
    return _JOURNAL.exists()


def log_driver(words: LogConfig) -> str:
    """Its name. Raises Invalid and Unsupported with the Docker Engine's sentences."""
    name, options = words.type or "json-file", words.config
    if name == "none":
        return name
    if name in _ELSEWHERE:
        raise Unsupported(
            f"the log driver {name!r} is not supported here: use json-file, local, journald or none",
            field="LogConfig.Type",
        )
    if name == "journald" and not has_journal():
        raise Unsupported("failed to initialize logging driver: journald is not enabled on this host")
    if name not in _OPTIONS:
        raise Invalid(f'error looking up logging plugin {name}: plugin "{name}" not found', field="LogConfig.Type")
    _check_mode(options)
    for option in options:
        if option not in _OPTIONS[name]:
            raise Invalid(_UNKNOWN[name].format(option), field="LogConfig.Config")
    _check_values(options)
    return name


def _check_mode(options: Mapping[str, str]) -> None:
    mode, size = options.get("mode", ""), options.get("max-buffer-size")
    if mode not in ("", "blocking", "non-blocking"):
        raise Invalid(f"logger: logging mode not supported: {mode}", field="LogConfig.Config")
    if size is None:
        return
    if mode != "non-blocking":
        raise Invalid("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
    if not _SIZE.fullmatch(size):
        raise Invalid(f"error parsing option max-buffer-size: invalid size: '{size}'", field="LogConfig.Config")


def _check_values(options: Mapping[str, str]) -> None:
    """What dockerd finds out only when it starts the container."""
    compress = options.get("compress", "")
    if compress and compress not in _TRUTH:
        raise Invalid(
            f'failed to initialize logging driver: strconv.ParseBool: parsing "{compress}": invalid syntax',
            field="LogConfig.Config",
        )
