"""Results as definitions: what a client gives to another solve as its input, as bake does with `target:` contexts. A definition
of ours is one source that only names a result here; others are not solved. Pure.

Source: BuildKit's `client/llb/definition.go` (what a client demands of a definition).
"""

from __future__ import annotations

import hashlib

from insula.api.docker.buildkit.messages import Definition, Input, Op, OpMetadata, SourceOp
from insula.errors import Unsupported
from insula.model.protobuf import decode, encode

_SCHEME = "insula-result://"


def of_result(ref: str) -> Definition:
    """The definition that stands for a result."""
    source = encode(Op(source=SourceOp(_SCHEME + ref)))
    digest = "sha256:" + hashlib.sha256(source).hexdigest()
    last = encode(Op(inputs=(Input(digest),)))
    return Definition((source, last), {digest: OpMetadata({"llb.customname": "a result of this build"})})


def result_of(definition: Definition) -> str:
    """The result that a definition stands for. Raises Unsupported, Invalid."""
    for data in definition.ops:
        source = decode(data, Op).source
        if source is not None and source.identifier.startswith(_SCHEME):
            return source.identifier.removeprefix(_SCHEME)
    raise Unsupported("LLB definitions are not solved here: only Dockerfiles are built", field="definition")
