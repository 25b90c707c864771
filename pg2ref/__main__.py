"""`python -m pg2ref` is `pg2ref`."""

from pg2ref.cli.main import main

main()
