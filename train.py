"""`python train.py key=value ...` is `lmkit train key=value ...`."""

import sys

from lmkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
