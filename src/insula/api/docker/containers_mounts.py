"""What a client asks to be mounted, in its four spellings (`Binds`, `Mounts`, `Tmpfs`, `Volumes`, and `VolumesFrom`), as
`MountConfig`s. Pure. Later spellings override earlier ones at the same place, as in dockerd: image and `Volumes` least,
`VolumesFrom`, then `Binds` and `Mounts`, which may not name one place twice."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence

from insula.api.docker.words import ContainerWords, HostWords, MountWords
from insula.engine.contract import Instance
from insula.errors import Invalid, Unsupported
from insula.model.instance import MountConfig

_PROPAGATION = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_IGNORED_MODES = frozenset({"z", "Z", "cached", "delegated", "consistent"})  # SELinux and Docker Desktop only
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
        for target in (_target(path, f"Volumes: {path}") for path in words.volumes)
    }
    return tuple({**anonymous, **inherited, **asked}.values())


def _target(path: str, whole: str) -> str:
    start = f"invalid volume specification: '{whole}': invalid mount config"
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
        return MountConfig(kind="volume", target=_target(parts[0], text))
    source, target = parts[0], _target(parts[1], text)
    modes = parts[2].split(",") if len(parts) == 3 and parts[2] else []
    readonly, propagation, no_copy = _modes(modes, text)
    if source.startswith("/"):
        return MountConfig(
            kind="bind",
            source=posixpath.normpath(source).replace("//", "/"),
            target=target,
            readonly=readonly,
            propagation=propagation or "rprivate",
            create_source=True,
        )
    if propagation:
        raise Invalid(
            f"invalid volume specification: '{text}': propagation is for bind mounts", field="HostConfig.Binds"
        )
    return MountConfig(kind="volume", source=volume_name(source), target=target, readonly=readonly, no_copy=no_copy)


def _modes(modes: Sequence[str], text: str) -> tuple[bool, str, bool]:
    readonly, propagation, no_copy = False, "", False
    for mode in modes:
        if mode == "ro":
            readonly = True
        elif mode in _PROPAGATION:
            propagation = mode
        elif mode == "nocopy":
            no_copy = True
        elif mode not in _IGNORED_MODES and mode != "rw":
            raise Invalid(f"invalid mode: {','.join(modes)}", field="HostConfig.Binds")
    return readonly, propagation, no_copy


def volume_name(name: str) -> str:
    """Raises Invalid with the Docker Engine's sentence."""
    if len(name) == 1:
        raise Invalid("volume name is too short, names should be at least two alphanumeric characters", field="Name")
    if not _VOLUME_NAME.match(name):
        raise Invalid(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path',
            field="Name",
        )
    return name


# --- Mounts and Tmpfs -------------------------------------------------------------------------------------------


def mount_of(words: MountWords) -> MountConfig:
    """One of `Mounts`."""
    if not words.target:
        raise Invalid(f'invalid mount config for type "{words.type}": field Target must not be empty', field="Mounts")
    target = _target(words.target, words.target)
    match words.type:
        case "bind":
            return _bind_mount(words, target)
        case "volume":
            return _volume_mount(words, target)
        case "tmpfs":
            return _tmpfs_mount(words, target)
        case "npipe" | "cluster" | "image":
            raise Unsupported(f"mounts of type {words.type!r} are not supported: use bind, volume or tmpfs")
        case _:
            raise Invalid(f'invalid mount config for type "{words.type}": mount type unknown', field="Mounts.Type")


def _bind_mount(words: MountWords, target: str) -> MountConfig:
    if not words.source:
        raise Invalid('invalid mount config for type "bind": field Source must not be empty', field="Mounts.Source")
    options = words.bind_options
    if options.propagation and options.propagation not in _PROPAGATION:
        raise Invalid(
            f'invalid mount config for type "bind": invalid propagation mode: {options.propagation}', field="Mounts"
        )
    return MountConfig(
        kind="bind",
        source=words.source,
        target=target,
        readonly=words.read_only,
        propagation=options.propagation or "rprivate",
        create_source=options.create_mountpoint,
        options=("bind",) if options.non_recursive else (),
    )


def _volume_mount(words: MountWords, target: str) -> MountConfig:
    options = words.volume_options
    if options.driver_config.name not in ("", "local"):
        raise Unsupported(f"there is no volume driver {options.driver_config.name!r}: only 'local' is")
    return MountConfig(
        kind="volume",
        source=volume_name(words.source) if words.source else "",
        target=target,
        readonly=words.read_only,
        no_copy=options.no_copy,
        subpath=options.subpath,
    )


def _tmpfs_mount(words: MountWords, target: str) -> MountConfig:
    if words.source:
        raise Invalid(
            'invalid mount config for type "tmpfs": field Source must not be specified', field="Mounts.Source"
        )
    options = words.tmpfs_options
    return MountConfig(
        kind="tmpfs",
        target=target,
        readonly=words.read_only,
        size_bytes=options.size_bytes or None,
        mode=options.mode or None,
        options=tuple("=".join(pair) for pair in options.options),
    )


def tmpfs_of(host: HostWords) -> Iterable[MountConfig]:
    """`Tmpfs`: a place and its options in one text."""
    for path, text in host.tmpfs.items():
        yield MountConfig(
            kind="tmpfs", target=_tmpfs_target(path), options=tuple(option for option in text.split(",") if option)
        )


def _tmpfs_target(path: str) -> str:
    if not path.startswith("/"):
        raise Invalid(f"invalid mount path: '{path}' mount path must be absolute", field="HostConfig.Tmpfs")
    return _target(path, path)


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


def volume_specs(words: ContainerWords) -> Iterable[tuple[str, MountWords]]:
    """Named volumes of `Mounts` that must be made with labels or options of their own before the instance is."""
    for mount in words.host_config.mounts:
        options = mount.volume_options
        if mount.type == "volume" and mount.source and (options.labels or options.driver_config.options):
            yield mount.source, mount
