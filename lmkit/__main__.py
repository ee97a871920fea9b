"""`python -m lmkit`."""

import os
import sys

from lmkit.cli import main
from lmkit.signals import follow_parent

if parent := os.environ.pop("LMKIT_FOLLOWS", None):  # a job of a sweep
    follow_parent(int(parent))

sys.exit(main())
