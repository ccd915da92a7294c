"""`python -m camkit`."""

from camkit.cli import main

main()
