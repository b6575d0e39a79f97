"""Measures Insula beside the real peers, on the same machine, in the same run: `python -m bench`.

`suite/` holds one file per benchmark that exports `BENCHMARK`; presence is registration. `loads/` holds the programs that make
load: each runs in a process of its own, so that it neither slows nor helps what is measured. `docs/benchmarks.md` says how each
number is made.
"""
