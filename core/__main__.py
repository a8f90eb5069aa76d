"""`python -m edgeadapt` is the command `edgeadapt`."""

from __future__ import annotations

import sys

from edgeadapt.cli import main

if __name__ == "__main__":
    sys.exit(main())
