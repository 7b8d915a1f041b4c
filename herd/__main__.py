"""`python -m herd`: the same as the `herd` command (torchrun needs a module)."""

import sys

from herd.cli import main

sys.exit(main())
