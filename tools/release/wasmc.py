"""The program that becomes the single file: `wasmc`."""

import sys

from autowasm.cli.wasmc import main

if __name__ == "__main__":
    sys.exit(main())
