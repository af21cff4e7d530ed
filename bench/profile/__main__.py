"""`python -m bench.profile`: imnet-profile from a checkout."""

import sys

from .cli import main

sys.exit(main())
