"""The reconcile loop: from watches to keys, from keys to one reconcile at a time.

controller.py   what a controller is: a name, the types it watches, and a function from a key to a result
queue.py        keys waiting: each once, never two workers on one key, back-off per key
shared.py       one cache per type for all controllers of a process
loop.py         watches feeding the queue, workers emptying it, faults caught per key
"""
