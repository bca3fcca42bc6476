"""The command line, as ``python -m lightning_msda``."""

from lightning_msda.cli import main

if __name__ == "__main__":
    main()
