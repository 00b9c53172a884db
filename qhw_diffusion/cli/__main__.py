"""`python -m qhw_diffusion.cli`: the `qhw` command."""

import sys

from qhw_diffusion.cli.app import main

sys.exit(main())
