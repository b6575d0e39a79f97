"""The bridge: the only part that knows both towers. It turns Pods and machines bound to this node into Instances.

podspec.py    pure: a Pod and what it refers to → InstanceConfigs
podenv.py     pure: environment variables
podstatus.py  pure: Instances and probe results → the Pod's status
podplan.py    pure: what to do next for one pod
pods.py       one worker per pod carrying the plan out
podvolumes.py configMap, secret, projected, downwardAPI, emptyDir, hostPath as folders on this node
probes.py     liveness, readiness and startup probes
machines.py   one worker per VirtualMachineInstance; vmspec.py is its pure part
mirror.py     what `docker run` started, shown as mirror Pods
node.py       this node's Node object
server.py     the endpoint for byte streams: logs, exec, attach, port-forward, console
"""
