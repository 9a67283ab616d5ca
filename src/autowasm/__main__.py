"""`python -m autowasm` runs `wasmer`."""

import sys

from autowasm.cli.wasmer import main

if __name__ == "__main__":
    sys.exit(main())
