"""``python -m qtrack``."""

from qtrack.cli import main

if __name__ == "__main__":
    main(prog_name="qtrack")
