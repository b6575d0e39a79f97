"""How a failed build is told to BuildKit's clients: with the lines of the Dockerfile, which they show. Pure.

Source: BuildKit's `util/grpcerrors` and `solver/errdefs` (type URLs and JSON forms, seen on the wire of BuildKit 0.13).
"""

from __future__ import annotations

import base64

import msgspec

from insula.api.docker.buildkit.messages import Any, RpcStatus, SourceInfo
from insula.api.docker.buildkit.progress import Told
from insula.api.grpc.status import Code, RpcFault, fault_of
from insula.engine.building.contract import BuildFault, Location
from insula.errors import InsulaError
from insula.model.protobuf import encode

_URL = "github.com/moby/buildkit/"


def told(fault: InsulaError, progress: Told) -> RpcFault:
    """A fault of a build as the end of a call. Clients put the name of any code but UNKNOWN before the sentence."""
    if not isinstance(fault, BuildFault):
        found = fault_of(fault)
        return RpcFault(Code.UNKNOWN, str(found), details=found.details)
    details = []
    if fault.location is not None and progress.dockerfile.data:
        details.append(_json("errdefs.Source", _source(fault.location, progress.dockerfile)))
    if fault.vertex:
        details.append(_json("errdefs.Vertex", {"digest": progress.digest(fault.vertex)}))
    if fault.code:
        details.append(_json("gatewayapi.ExitMessage", {"Code": fault.code}))
    status = RpcStatus(Code.UNKNOWN, str(fault), tuple(details))
    return RpcFault(Code.UNKNOWN, str(fault), details=encode(status))


def _json(name: str, value: object) -> Any:
    return Any(f"{_URL}{name}+json", msgspec.json.encode(value))


def _source(location: Location, dockerfile: SourceInfo) -> dict[str, object]:
    return {
        "info": {
            "filename": dockerfile.filename,
            "data": base64.b64encode(dockerfile.data).decode(),
            "language": dockerfile.language,
        },
        "ranges": [{"start": {"line": location.start}, "end": {"line": location.end}}],
    }
