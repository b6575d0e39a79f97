"""The NoCloud seed of cloud-init: a small ISO 9660 volume `cidata` with user-data, meta-data and network-config.

See cloud-init's documentation of the NoCloud data source. Names need Rock Ridge or Joliet; both are written.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import pycdlib

from insula.errors import Invalid

LABEL = "cidata"
_MAX_BYTES = 16 * 1024 * 1024


def seed_iso(files: Mapping[str, str]) -> bytes:
    """The volume's bytes. An absent `user-data` or `meta-data` is written empty: cloud-init wants both. Raises Invalid."""
    content = {"meta-data": "", "user-data": "", **files}
    if sum(len(text) for text in content.values()) > _MAX_BYTES:
        raise Invalid(f"the cloud-init data is larger than {_MAX_BYTES >> 20} MiB", field="cloudInitNoCloud")
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for number, (name, text) in enumerate(sorted(content.items())):
        if "/" in name or not name.isascii() or not 0 < len(name) <= 64:
            raise Invalid(f"{name!r} cannot be a file of a cloud-init seed", field="cloudInitNoCloud")
        data = text.encode()
        iso.add_fp(io.BytesIO(data), len(data), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()
