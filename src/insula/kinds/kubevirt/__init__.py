"""KubeVirt's kinds. Fields, defaults and sentences follow KubeVirt's API (v1); what Insula does not do is refused by name.

shape.py, domain.py, volumes.py, instance.py   the structural schemas     defaults.py   what is filled in
checks.py    what is wrong with a machine's spec                            refusals.py   what Insula does not do with it
virtualmachine.py, virtualmachineinstance.py   the kinds
"""
