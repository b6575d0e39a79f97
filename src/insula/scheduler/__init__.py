"""Where a workload goes: filters say which nodes can take it, scores say which of those is best.

needs.py     what a Pod or VirtualMachineInstance asks for, as plain numbers and expressions
columns.py   all nodes as numpy columns: one array per resource, per label key, per taint
filters.py   pure functions (columns, needs) -> mask of nodes
scores.py    pure functions (columns, needs) -> points per node, 0 to 100
place.py     one decision: filter all nodes, score all that are left, choose
loop.py      the reconciler that reads the API and writes bindings
"""
