"""The `qhw` command, one file a topic: typed functions whose flags and help come from their signatures.

`app.py` has the table of commands, `flags.py` makes a command line of a function (by the library tyro).
"""

from __future__ import annotations

from qhw_diffusion.cli.app import COMMANDS, main

__all__ = ["COMMANDS", "main"]
