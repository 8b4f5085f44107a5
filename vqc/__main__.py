"""`python -m vqc`, and `torchrun --nproc-per-node N -m vqc`: the command line."""

from vqc.cli import main

if __name__ == "__main__":
    main()
