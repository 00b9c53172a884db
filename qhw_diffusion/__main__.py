"""`python -m qhw_diffusion`: the command `qhw`."""

import sys

from qhw_diffusion.cli import main

if __name__ == "__main__":
    sys.exit(main())
