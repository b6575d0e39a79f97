"""What a client asks to be mounted, in its four spellings (`Binds`, `Mounts`, `Tmpfs`, `Volumes`, and `VolumesFrom`), as
`MountConfig`s. Pure. Later spellings override earlier ones at the same place, as in dockerd: image and `Volumes` least,
`VolumesFrom`, then `Binds` and `Mounts`, which may not name one place twice."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from insula.api.docker.words import BindOptions, ContainerWords, HostWords, MountWords, TmpfsOptions, VolumeOptions
from insula.engine.contract import Instance
from insula.errors import Invalid, NotFound, Unsupported
from insula.model.instance import MountConfig

_PROPAGATION = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")


def mounts_of(words: ContainerWords, sources: Mapping[str, Instance]) -> tuple[MountConfig, ...]:
    """All of them. `sources` are the instances that `VolumesFrom` names. Raises Invalid and Unsupported."""
    host = words.host_config
    asked: dict[str, MountConfig] = {}
    for mount in (*(bind(text) for text in host.binds), *(mount_of(each) for each in host.mounts), *tmpfs_of(host)):
        if mount.target in asked:
            raise Invalid(f"Duplicate mount point: {mount.target}", field="HostConfig.Mounts")
        asked[mount.target] = mount
    inherited = {mount.target: mount for mount in volumes_from(host.volumes_from, sources)}
    anonymous = {
        target: MountConfig(kind="volume", target=target)
        for target in (_target(path, "volume", path) for path in words.volumes)
    }
    return tuple({**anonymous, **inherited, **asked}.values())


def _target(path: str, kind: str, whole: str = "") -> str:
    """The place inside, clean. `whole` is the text that named it, where that was one."""
    start = (f"invalid volume specification: '{whole}': " if whole else "") + f'invalid mount config for type "{kind}"'
    if not path.startswith("/") or "\0" in path:
        raise Invalid(f"{start}: invalid mount path: '{path}' mount path must be absolute", field="Mounts")
    clean = posixpath.normpath(path).replace("//", "/")
    if clean == "/":
        raise Invalid(f"{start}: invalid specification: destination can't be '/'", field="Mounts")
    return clean


# --- Binds ------------------------------------------------------------------------------------------------------


def bind(text: str) -> MountConfig:
    """`SOURCE:TARGET[:MODES]`, or only a target for an anonymous volume. Raises Invalid with the Docker Engine's sentence."""
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(parts[:2]):
        raise Invalid(f"invalid volume specification: '{text}'", field="HostConfig.Binds")
    if len(parts) == 1:
        return MountConfig(kind="volume", target=_target(parts[0], "volume", text))
    source, kind = parts[0], "bind" if parts[0].startswith("/") else "volume"
    target = _target(parts[1], kind, text)
    readonly, propagation, no_copy = _modes(parts[2] if len(parts) == 3 else "")
    stray = "VolumeOptions" if kind == "bind" and no_copy else "BindOptions" if kind == "volume" and propagation else ""
    if stray:
        raise Invalid(
            f"invalid volume specification: '{text}': invalid mount config for type \"{kind}\": field {stray} must not be "
            "specified",
            field="HostConfig.Binds",
        )
    if kind == "volume":
        return MountConfig(kind="volume", source=volume_name(source), target=target, readonly=readonly, no_copy=no_copy)
    return MountConfig(
        kind="bind",
        source=posixpath.normpath(source).replace("//", "/"),
        target=target,
        readonly=readonly,
        propagation=propagation or "rprivate",
        create_source=True,
    )


_MODES: tuple[frozenset[str], ...] = (
    frozenset({"ro", "rw"}),
    _PROPAGATION,
    frozenset({"nocopy"}),
    frozenset({"z", "Z"}),
    frozenset({"cached", "delegated", "consistent", "default"}),
)


def _modes(text: str) -> tuple[bool, str, bool]:
    """Read-only, propagation, and whether the image's content stays out. Each sort of mode may be there once."""
    modes = text.split(",") if text else []
    sorts = [next((n for n, sort in enumerate(_MODES) if mode in sort), None) for mode in modes]
    if None in sorts or len(set(sorts)) != len(sorts):
        raise Invalid(f"invalid mode: {text}", field="HostConfig.Binds")
    return "ro" in modes, next((mode for mode in modes if mode in _PROPAGATION), ""), "nocopy" in modes


def volume_name(name: str) -> str:
    """Raises Invalid with the Docker Engine's sentence."""
    if len(name) == 1:
        raise Invalid(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters",
            field="Name",
        )
    if not _VOLUME_NAME.match(name):
        raise Invalid(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path',
            field="Name",
        )
    return name


# --- Mounts and Tmpfs -------------------------------------------------------------------------------------------


_KINDS = {"bind": "BindOptions", "volume": "VolumeOptions", "tmpfs": "TmpfsOptions", "image": ""}


def mount_of(words: MountWords) -> MountConfig:
    """One of `Mounts`."""
    kind = words.type
    if kind not in _KINDS:
        raise _wrong(kind, "mount type unknown")
    if not words.target:
        raise _wrong(kind, "field Target must not be empty")
    target = _target(words.target, kind)
    given = {"BindOptions": words.bind_options, "VolumeOptions": words.volume_options}
    for name, options in given.items():
        if options is not None and name != _KINDS[kind] and not (kind == "tmpfs" and name == "VolumeOptions"):
            raise _wrong(kind, f"field {name} must not be specified")
    match kind:
        case "bind":
            return _bind_mount(words, target)
        case "volume":
            return _volume_mount(words, target)
        case "tmpfs":
            return _tmpfs_mount(words, target)
        case _:
            raise Unsupported(
                "mounts of type 'image' are not supported: use bind, volume or tmpfs", field="Mounts.Type"
            )


def _wrong(kind: str, reason: str) -> Invalid:
    return Invalid(f'invalid mount config for type "{kind}": {reason}', field="Mounts")


def _bind_mount(words: MountWords, target: str) -> MountConfig:
    if not words.source:
        raise _wrong("bind", "field Source must not be empty")
    options = words.bind_options or BindOptions()
    if options.propagation and options.propagation not in _PROPAGATION:
        raise _wrong("bind", f"invalid propagation mode: {options.propagation}")
    return MountConfig(
        kind="bind",
        source=words.source,
        target=target,
        readonly=words.read_only,
        propagation=options.propagation or "rprivate",
        create_source=options.create_mountpoint,
        options=("bind",) if options.non_recursive else (),
        readonly_below=_below(words, options),
    )


def _below(words: MountWords, options: BindOptions) -> Literal["", "never", "must"]:
    """Whether what is mounted below a read-only bind is read-only too."""
    if options.read_only_non_recursive and options.read_only_force_recursive:
        raise _wrong("bind", 'mount options conflict: "ReadOnlyNonRecursive" and "ReadOnlyForceRecursive"')
    if options.read_only_non_recursive and not words.read_only:
        raise _wrong("bind", "mount options: ReadOnlyNonRecursive needs ReadOnly")
    if options.read_only_force_recursive and not words.read_only:
        raise _wrong("bind", "mount options: ReadOnlyForceRecursive needs ReadOnly")
    if options.read_only_force_recursive and (options.propagation or "rprivate") != "rprivate":
        raise _wrong("bind", "mount options: ReadOnlyForceRecursive needs the propagation rprivate")
    if options.read_only_force_recursive and options.non_recursive:
        raise _wrong("bind", "mount options: ReadOnlyForceRecursive does not go with NonRecursive")
    return "never" if options.read_only_non_recursive else "must" if options.read_only_force_recursive else ""


def _volume_mount(words: MountWords, target: str) -> MountConfig:
    options = words.volume_options or VolumeOptions()
    check_driver(options.driver_config.name, words.source)
    if words.read_only and not words.source:
        raise _wrong("volume", "must not set ReadOnly mode when using anonymous volumes")
    if options.subpath and not _is_local(options.subpath):
        raise _wrong("volume", "subpath must be a relative path within the volume")
    return MountConfig(
        kind="volume",
        source=volume_name(words.source) if words.source else "",
        target=target,
        readonly=words.read_only,
        no_copy=options.no_copy,
        subpath=options.subpath,
    )


def _is_local(path: str) -> bool:
    """Whether it stays below where it starts, as Go's filepath.IsLocal has it."""
    clean = posixpath.normpath(path)
    return not path.startswith("/") and clean != ".." and not clean.startswith("../")


def check_driver(driver: str, name: str) -> None:
    """There is one volume driver. Raises NotFound with dockerd's sentence."""
    if driver not in ("", "local"):
        raise NotFound(
            f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found',
            kind="plugin",
            name=driver,
        )


def _tmpfs_mount(words: MountWords, target: str) -> MountConfig:
    if words.source:
        raise _wrong("tmpfs", "field Source must not be specified")
    options = words.tmpfs_options or TmpfsOptions()
    if options.size_bytes < 0 or options.mode < 0:
        raise _wrong("tmpfs", "SizeBytes and Mode must not be negative")
    return MountConfig(
        kind="tmpfs",
        target=target,
        readonly=words.read_only,
        size_bytes=options.size_bytes or None,
        mode=options.mode or None,
        options=tuple(_tmpfs_option("=".join(pair)) for pair in options.options),
    )


_TMPFS_FLAGS = _PROPAGATION | {
    "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync", "remount", "atime", "noatime",
    "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "mand", "nomand", "defaults",
    "unbindable", "runbindable",
}  # fmt: skip
_TMPFS_VALUES = frozenset({"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"})


def _tmpfs_option(option: str) -> str:
    name, equals, _ = option.partition("=")
    if not (name in _TMPFS_VALUES if equals else name in _TMPFS_FLAGS):
        raise Invalid(f'invalid tmpfs option ["{option}"]', field="Tmpfs")
    return option


def tmpfs_of(host: HostWords) -> Iterable[MountConfig]:
    """`Tmpfs`: a place and its options in one text."""
    for path, text in host.tmpfs.items():
        if not path.startswith("/"):
            raise Invalid(f"invalid mount path: '{path}' mount path must be absolute", field="Tmpfs")
        if posixpath.normpath(path) in ("/", "//"):
            raise Invalid("invalid specification: destination can't be '/'", field="Tmpfs")
        options = tuple(_tmpfs_option(option) for option in text.split(",") if option)
        yield MountConfig(kind="tmpfs", target=_target(path, "tmpfs"), options=options)


# --- VolumesFrom ------------------------------------------------------------------------------------------------


def source_name(text: str) -> tuple[str, str]:
    """`CONTAINER[:ro|rw]` in two."""
    name, _, mode = text.partition(":")
    if mode not in ("", "ro", "rw", "z", "Z"):
        raise Invalid(f"invalid mode: {mode}", field="VolumesFrom")
    if not name:
        raise Invalid(f"invalid specification of volumes from another container: {text!r}", field="VolumesFrom")
    return name, mode


def volumes_from(texts: Sequence[str], sources: Mapping[str, Instance]) -> Iterable[MountConfig]:
    """The binds and volumes of other instances, by name where they were anonymous there."""
    for text in texts:
        name, mode = source_name(text)
        for mount in sources[name].mounts:
            if mount.config.kind == "tmpfs":
                continue
            yield MountConfig(
                kind=mount.config.kind,
                source=mount.volume or mount.source,
                target=mount.config.target,
                readonly=mode == "ro" or (mount.config.readonly and mode != "rw"),
                propagation=mount.config.propagation,
                no_copy=True,
            )


def volume_specs(words: ContainerWords) -> Iterable[tuple[str, VolumeOptions]]:
    """Named volumes of `Mounts` that must be made with labels or options of their own before the instance is."""
    for mount in words.host_config.mounts:
        options = mount.volume_options or VolumeOptions()
        if mount.type == "volume" and mount.source and (options.labels or options.driver_config.options):
            yield mount.source, options
