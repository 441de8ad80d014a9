"""`python -m fastgan`: the same as the command `fastgan`."""

import sys

from fastgan.cli import main

if __name__ == "__main__":
    sys.exit(main())
