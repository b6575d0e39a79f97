"""Changing part of an object: four dialects, all pure functions over plain JSON data.

json        a list of operations (RFC 6902)
merge       an object laid over another (RFC 7386)
strategic   the same, with lists merged by key, as kubectl's client-side apply sends it
apply       server-side apply: merge by schema, with fields owned by managers (`fieldset`, `managed`)
"""
