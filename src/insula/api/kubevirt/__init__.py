"""The KubeVirt door: the subresources of virtual machines under /apis/subresources.kubevirt.io, as virtctl calls them.

    app.py         the route table, and how a request finds its handler
    lifecycle.py   start, stop, restart: pure decisions on a VirtualMachine
    documents.py   discovery and version

The kinds themselves (VirtualMachine, VirtualMachineInstance) are ordinary resources of the Kubernetes door.
"""
