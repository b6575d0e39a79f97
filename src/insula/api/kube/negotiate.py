"""In what form to answer: the Accept header read into one of the few forms that we give. Pure.

    application/json                                         objects
    application/json;as=Table;v=v1;g=meta.k8s.io             rows for kubectl
    application/json;as=PartialObjectMetadata(List);v=v1     metadata only
    application/yaml                                         objects as YAML (never for watches)
Protobuf is never given: every client that asks for it also takes JSON.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from msgspec import Struct

from insula.api.kube.errors import NotAcceptable

Shape = Literal["object", "table", "metadata"]


class Form(Struct, frozen=True):
    """The chosen form. `version` is that of meta.k8s.io for tables and metadata."""

    shape: Shape = "object"
    yaml: bool = False
    version: str = "v1"
    media_type: str = "application/json"


class Media(Struct, frozen=True):
    """One alternative of an Accept header: type and parameters, quality in thousandths."""

    type: str
    parameters: dict[str, str]
    quality: int


def parse(header: str) -> list[Media]:
    """Alternatives in the client's order of liking."""
    found: list[Media] = []
    for part in header.split(","):
        kind, *rest = (word.strip() for word in part.split(";"))
        parameters = dict(_pair(word) for word in rest)
        try:
            quality = int(float(parameters.pop("q", "1")) * 1000)
        except ValueError:
            quality = 1000
        if kind:
            found.append(Media(kind.lower(), parameters, quality))
    return sorted(found, key=lambda media: -media.quality)


def _pair(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name.strip(), value.strip().strip('"')


@lru_cache(maxsize=256)
def choose(header: str) -> Form:
    """The first alternative that we can give. Raises NotAcceptable (406) when there is none."""
    if not header:
        return Form()
    for media in parse(header):
        if (form := _form(media)) is not None:
            return form
    raise NotAcceptable(
        "only the following media types are accepted: application/json, application/yaml",
    )


def _form(media: Media) -> Form | None:
    shape: Shape = "object"
    version = media.parameters.get("v", "v1")
    match media.parameters.get("as"):
        case None:
            pass
        case "Table" if version in ("v1", "v1beta1"):
            shape = "table"
        case "PartialObjectMetadata" | "PartialObjectMetadataList" if version in ("v1", "v1beta1"):
            shape = "metadata"
        case _:
            return None
    match media.type:
        case "application/json" | "application/*" | "*/*":
            return Form(shape, False, version)
        case "application/yaml" | "application/x-yaml" | "text/yaml" if shape == "object":
            return Form(shape, True, version, "application/yaml")
    return None
