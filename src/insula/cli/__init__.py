"""The command line: the only package that assembles parts into processes.

main.py       the command `insula`, loading one command file at a time
paths.py      where everything lives, with and without --root
settings.py   the rows of /etc/insula/config.yaml
assemble.py   engine, doors, controllers, scheduler and agent put into one process
daemon.py     up and down: one process, one lock, signals, readiness
output.py     tables for people, JSON and YAML for programs
commands/     one file per command
"""
