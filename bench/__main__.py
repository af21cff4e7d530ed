"""``python -m bench`` from a checkout is the command ``imnet-bench``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
