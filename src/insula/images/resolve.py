"""Deciding, without I/O: which image a reference means, and what removing one does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

from insula.errors import Conflict, Invalid, NotFound
from insula.images import reference
from insula.images.contract import Use
from insula.images.metadata import Catalog


def short(image: str) -> str:
    """An id as Docker prints it: 12 digits."""
    return image.removeprefix("sha256:")[:12]


def find(catalog: Catalog, text: str) -> str:
    """The id of the image that a reference means. A name wins over an id's beginning. Raises NotFound, Invalid."""
    if text in catalog.images:
        return text
    prefix = reference.id_prefix(text)
    if f"sha256:{prefix}" in catalog.images:
        return f"sha256:{prefix}"
    parsed, fault = None, None
    try:
        parsed = reference.parse(text)
    except Invalid as error:
        fault = error
    if parsed is not None and (found := _by_name(catalog, parsed)):
        return found
    matching = [image for image in catalog.images if prefix and image.startswith(f"sha256:{prefix}")]
    if len(matching) == 1:
        return matching[0]
    if parsed is None and not prefix and fault is not None:
        raise fault
    shown = parsed.familiar if parsed is not None else text
    raise NotFound(f"No such image: {shown}", kind="image", name=text)


def _by_name(catalog: Catalog, parsed: reference.Reference) -> str | None:
    if not parsed.digest:
        return catalog.names.get(parsed.tagged)
    wanted = f"{parsed.name}@{parsed.digest}"
    return next((image for image, entry in catalog.images.items() if wanted in entry.digests), None)


class Removal(Struct, frozen=True, kw_only=True):
    """What a removal will do: names and `name@digest`s that go, and whether the image goes, though perhaps (`orphan`) kept
    out of sight for the stopped instances that need it."""

    image: str
    names: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    delete: bool = False
    orphan: bool = False
    parents: tuple[str, ...] = ()  # nameless images that nothing else was made from


def plan_removal(catalog: Catalog, text: str, *, force: bool, uses: Sequence[Use], prune: bool = True) -> Removal:
    """Docker's rules for `docker rmi`. Raises NotFound, Conflict."""
    plan = _plan(catalog, text, force, uses)
    if not (plan.delete and prune):
        return plan
    return msgspec.structs.replace(plan, parents=tuple(_lonely_parents(catalog, plan.image, uses)))


def _lonely_parents(catalog: Catalog, image: str, uses: Sequence[Use]) -> Iterator[str]:
    gone = {image}
    while True:
        parent = catalog.images[image].parent
        entry = catalog.images.get(parent)
        is_needed = entry is None or entry.digests or catalog.names_of(parent) or parent in gone
        if is_needed or set(catalog.children_of(parent)) - gone or any(use.image == parent for use in uses):
            return
        gone.add(parent)
        yield parent
        image = parent


def _plan(catalog: Catalog, text: str, force: bool, uses: Sequence[Use]) -> Removal:
    image = find(catalog, text)
    mine = [use for use in uses if use.image == image]
    prefix = reference.id_prefix(text)
    if prefix and image.startswith(f"sha256:{prefix}") and _by_name(catalog, reference_or_none(text)) != image:
        return _by_id(catalog, image, force, mine)
    return _by_reference(catalog, image, text, force, mine)


def reference_or_none(text: str) -> reference.Reference:
    """A reference, or one that nothing can match."""
    try:
        return reference.parse(text)
    except Invalid:
        return reference.Reference(domain="", path="")


def _by_reference(catalog: Catalog, image: str, text: str, force: bool, uses: Sequence[Use]) -> Removal:
    names, digests = catalog.names_of(image), catalog.images[image].digests
    parsed = reference.parse(text)
    if uses and not force and _is_single(names, digests):
        raise Conflict(
            f'conflict: unable to remove repository reference "{text}" (must force) - container '
            f"{short(uses[0].instance)} is using its referenced image {short(image)}"
        )
    if parsed.digest:
        gone_names: tuple[str, ...] = ()
        gone_digests: tuple[str, ...] = (f"{parsed.name}@{parsed.digest}",)
    else:
        gone_names = (parsed.tagged,)
        repositories = {_repository(name) for name in names if name != parsed.tagged}
        gone_digests = tuple(
            each for each in digests if _repository(each) == parsed.name and parsed.name not in repositories
        )
    nothing_left = len(gone_names) == len(names) and len(gone_digests) == len(digests)
    held = any(use.running or use.files for use in uses) if force else bool(uses)
    delete = nothing_left and not held and not catalog.children_of(image)
    return Removal(image=image, names=gone_names, digests=gone_digests, delete=delete, orphan=delete and bool(uses))


def _by_id(catalog: Catalog, image: str, force: bool, uses: Sequence[Use]) -> Removal:
    names, digests = catalog.names_of(image), catalog.images[image].digests
    if catalog.children_of(image):
        raise Conflict(
            f"conflict: unable to delete {short(image)} (cannot be forced) - image has dependent child images"
        )
    if running := next((use for use in uses if use.running), None):
        raise Conflict(
            f"conflict: unable to delete {short(image)} (cannot be forced) - image is being used by running container "
            f"{short(running.instance)}"
        )
    if machine := next((use for use in uses if use.files), None):
        raise Conflict(
            f"conflict: unable to delete {short(image)} (cannot be forced) - image holds a disk or the kernel of machine "
            f"{short(machine.instance)}"
        )
    if not force and not _is_single(names, digests):
        raise Conflict(
            f"conflict: unable to delete {short(image)} (must be forced) - image is referenced in multiple repositories"
        )
    if not force and uses:
        raise Conflict(
            f"conflict: unable to delete {short(image)} (must be forced) - image is being used by stopped container "
            f"{short(uses[0].instance)}"
        )
    return Removal(image=image, names=names, digests=digests, delete=True, orphan=bool(uses))


def _is_single(names: Sequence[str], digests: Sequence[str]) -> bool:
    """At most one tag, and everything within one repository."""
    return len(names) <= 1 and len({_repository(each) for each in (*names, *digests)}) <= 1


def _repository(name: str) -> str:
    if "@" in name:
        return name.partition("@")[0]
    return name.rpartition(":")[0]
