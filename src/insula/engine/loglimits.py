"""How much of a log is kept: pure decisions.

Docker counts in files of `max-size` bytes (decimal units, as docker/go-units reads them), of which the newest `max-file` are
kept. Here it is one file, whose head is taken away a `max-size` at a time, so as much is kept. Without options `json-file`
keeps all and `local` 5 times 20 MB, as dockerd does; pods get the kubelet's 5 times 10 MiB (its containerLogMaxFiles and
containerLogMaxSize), machines 16 MiB of their serial line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

from insula.engine.logattributes import JOURNALD
from insula.errors import Invalid
from insula.model.instance import InstanceConfig

_MIB = 1024 * 1024
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp])?i?b?", re.IGNORECASE)
_FAILED = "failed to initialize logging driver: "


class LogLimit(Struct, frozen=True, kw_only=True):
    """With more than `most_bytes`, only the newest `keep_bytes` are kept."""

    most_bytes: int
    keep_bytes: int


def of_files(size_bytes: int, files: int) -> LogLimit:
    """What a rotation over so many files keeps; of a single one dockerd keeps nothing, here it is half."""
    keep = size_bytes * (files - 1) if files > 1 else size_bytes // 2
    return LogLimit(most_bytes=size_bytes * files, keep_bytes=keep)


def limit_of(config: InstanceConfig) -> LogLimit | None:
    """None: all is kept, or there is no log. Raises Invalid with dockerd's sentences."""
    if config.log_driver == "none":
        return None
    if config.machine is not None:
        return of_files(4 * _MIB, 4)
    options = config.log_options
    if options.get("compress", "").lower() in ("1", "t", "true") and config.log_driver == "json-file":
        _check_compress(options)
    size, files = _size(options.get("max-size", "")), _files(options.get("max-file", ""))
    if config.log_driver in ("local", JOURNALD):  # of a journal's lines as much is kept here for `docker logs`
        return of_files(size or 20_000_000, files or 5)
    if config.owner == "kube" and not size:
        return of_files(10 * _MIB, 5)
    return of_files(size, files or 1) if size else None


def _check_compress(options: Mapping[str, str]) -> None:
    if not options.get("max-size") or _files(options.get("max-file", "")) < 2:
        raise Invalid(
            f"{_FAILED}compress cannot be true when max-file is less than 2 or max-size is not set", field="log_options"
        )


def _size(text: str) -> int:
    if not text:
        return 0
    found = _SIZE.fullmatch(text)
    if found is None:
        raise Invalid(f"{_FAILED}invalid size: '{text}'", field="log_options")
    size = int(float(found[1]) * 1000 ** ("kmgtp".index(found[2].lower()) + 1 if found[2] else 0))
    if size <= 0:
        raise Invalid(f"{_FAILED}max-size must be a positive number", field="log_options")
    return size


def _files(text: str) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise Invalid(f'{_FAILED}strconv.Atoi: parsing "{text}": invalid syntax', field="log_options")
    if int(text) < 1:
        raise Invalid(f"{_FAILED}max-file cannot be less than 1", field="log_options")
    return int(text)
