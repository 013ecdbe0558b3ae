"""`python -m longtape`."""

from longtape.cli.main import main

main()
