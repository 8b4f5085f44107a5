"""`python -m vqc.cli`."""

from vqc.cli import main

main()
