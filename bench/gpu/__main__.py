"""`python -m bench.gpu`: everything that needs a GPU, in one command."""

import sys

from .script import main

sys.exit(main())
