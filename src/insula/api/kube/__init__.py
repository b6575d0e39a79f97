"""The Kubernetes door: HTTP in, verbs behind. Knows clients' dialects (JSON, YAML, protobuf, Tables, watches), no storage.

request    what a path and method ask for           bodies, protobuf   what a client sent
authn      who asks                                 negotiate, table   in what form to answer
rbac       whether they may                         resources, watch   the verbs over HTTP
reviews    answers that are never stored            discovery, openapi what there is
streams    exec, logs, port-forward: a side road    errors             the tree of faults as Status objects
"""
