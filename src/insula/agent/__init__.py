"""The bridge: the only part that knows both towers. It turns Pods and machines bound to this node into Instances.

podspec.py    pure: a Pod and what it refers to → InstanceConfigs
podenv.py     pure: environment variables
podview.py    pure: all that is known of one pod at one moment
podplan.py    pure: what to do next for it
podstatus.py  pure: the status that it amounts to
pods.py       one worker (podworker.py) per pod: look, decide, do (podhands.py), report
podvolumes.py configMap, secret, projected, downwardAPI, emptyDir, hostPath as folders on this node
probes.py     liveness, readiness and startup probes
machines.py   one worker per VirtualMachineInstance; vmspec.py is its pure part
mirror.py     what `docker run` started, shown as mirror Pods
node.py       this node's Node object
server.py     the endpoint for byte streams: logs, exec, attach, port-forward, console
"""
