"""`python -m lmkit`: the command line."""

import os
import signal
import sys

from lmkit.cli import main
from lmkit.system.signals import FOLLOWS, follow_parent

if parent := os.environ.pop(FOLLOWS, None):  # a job or trial of a sweep
    follow_parent(int(parent))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # submitit means it for the launcher's process

sys.exit(main())
