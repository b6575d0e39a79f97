"""python -m insula.cli: the command, for starting the daemon with the interpreter that runs already."""

from insula.cli.main import main

main()
