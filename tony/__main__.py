"""`python -m tony`."""

from tony.cli import main

main()
