"""The table of prompts of the coloured digits: "a red seven on a blue ground", and what each one asks for.

`PROMPTS` is a table of 300: ten digits in six colours, each on five grounds of another colour. Its last sixty are held
out: no image of one is used for training the model or the reward classifier. Each word of them is in other prompts, so
a model that has learned what the words mean makes them too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Names of the digits."""
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
"""Names of the colours, of digits and of grounds."""
ATTRIBUTES = ("digit", "colour", "ground")
"""What a prompt asks for."""
N_VALUES = (len(DIGITS), len(COLOURS), len(COLOURS))
"""Number of values of each attribute."""
_OTHERS = len(COLOURS) - 1

_ALL = torch.tensor(
    [
        (digit, colour, (colour + 1 + other) % len(COLOURS))
        for digit in range(len(DIGITS))
        for colour in range(len(COLOURS))
        for other in range(_OTHERS)
    ]
)
# one ground for every digit in every colour: each digit, colour and ground is held out equally often
_HELD = (torch.arange(len(_ALL)) % _OTHERS) == (_ALL[:, 0] + _ALL[:, 1]) % _OTHERS
ATTRIBUTE_TABLE = torch.cat([_ALL[~_HELD], _ALL[_HELD]])
"""int64 [300, 3]: digit, colour and ground of each prompt, as indices of `DIGITS`, `COLOURS` and `COLOURS`."""
TRAINED = torch.arange(int((~_HELD).sum()))
"""int64 [240]: labels of the combinations that models are trained on, the first of the table."""
HELD_OUT = torch.arange(len(TRAINED), len(_ALL))
"""int64 [60]: labels of the combinations that are held out, the last of the table."""


def prompt(digit: int, colour: int, ground: int) -> str:
    """The prompt of three attributes, given by index."""
    return f"a {COLOURS[colour]} {DIGITS[digit]} on a {COLOURS[ground]} ground"


PROMPTS = tuple(prompt(*row) for row in ATTRIBUTE_TABLE.tolist())
"""The table: prompt of each label."""
WORDS = ("a", "on", "ground", *COLOURS, *DIGITS)
"""Every word of the prompts."""

_LABELS = {text: label for label, text in enumerate(PROMPTS)}


def attributes_of(prompts: Sequence[str] = PROMPTS) -> Tensor:
    """Digit, colour and ground of prompts, int64 [K, 3], as indices of `DIGITS`, `COLOURS` and `COLOURS`.

    Raises:
        InvalidInputError: a prompt that is none of `PROMPTS`.
    """
    texts = [" ".join(text.lower().split()) for text in prompts]
    for text, given in zip(texts, prompts, strict=True):
        if text not in _LABELS:
            raise InvalidInputError(
                f"{given!r} is no prompt of the coloured digits, which are of the form {PROMPTS[0]!r}: digits "
                f"{', '.join(DIGITS)}; two different colours of {', '.join(COLOURS)}"
            )
    return ATTRIBUTE_TABLE[torch.tensor([_LABELS[text] for text in texts], dtype=torch.int64)]


TEN = (
    "a red zero on a white ground",
    "a yellow one on a purple ground",
    "a white two on a green ground",
    "a blue three on a yellow ground",
    "a purple four on a white ground",
    "a green five on a yellow ground",
    "a white six on a blue ground",
    "a red seven on a blue ground",
    "a yellow eight on a red ground",
    "a blue nine on a green ground",
)
"""A table of ten prompts with every digit, colour and ground, for work that compares images of the same prompt.

One, two, seven and eight are in combinations that were held out.
"""
