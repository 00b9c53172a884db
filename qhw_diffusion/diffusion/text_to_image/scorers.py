"""The shipped classifiers under names that configurations and command lines take.

`qhw_diffusion.diffusion.text_to_image.scorers:reward` is what a training looks through, `…:evaluation` what measures.
"""

from __future__ import annotations

from qhw_diffusion.diffusion.classifiers import ROLES
from qhw_diffusion.diffusion.text_to_image.classifiers import PromptClassifier
from qhw_diffusion.diffusion.text_to_image.images import NAME


def __getattr__(name: str) -> PromptClassifier:
    # read when it is asked for, not when this module is imported
    if name in ROLES:
        return PromptClassifier.load(NAME, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
