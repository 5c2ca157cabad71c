"""`python -m excise`: run the command line without its script."""

from __future__ import annotations

from excise.cli import main

if __name__ == "__main__":
    main()
