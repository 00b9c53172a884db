"""Texts that Hypothesis draws: a strategy that is read is written and read again; what is none is told."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qhw_diffusion.errors import QhwError
from qhw_diffusion.mitigation.registry import STRATEGIES, engine_of, strategies_of, strategy_of

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)
WORDS = (
    "linear", "exponential", "richardson", "polynomial", "local", "global", "measured", "calibrated", "correlated",
    "yes", "no", "rows", "all", "xx", "xyxy", "1", "2", "3", "4", "0", "-1", "0.5", "1e3", "1e999", "nan", "inf",
    "1,2,3", "1,3,5", "1,1.5,2", "3,1", "1,,3", ",", "", " 2 ", "٣", "1_0", "9" * 30, "9" * 5000, "0x10",
)  # fmt: skip
TEXTS = st.builds(
    lambda name, settings: ":".join([name, *settings]),
    st.sampled_from(sorted(STRATEGIES)),
    st.lists(st.sampled_from(WORDS), max_size=4),
)


@settings(FEW, max_examples=200)
@given(st.lists(TEXTS, min_size=1, max_size=2))
def test_what_is_read_is_written_and_read_again(texts: list[str]) -> None:
    try:
        strategies = strategies_of("+".join(texts))
    except QhwError:
        return
    written = [strategy.spec for strategy in strategies]
    assert None not in written
    again = strategies_of("+".join(str(text) for text in written))
    assert again == strategies
    assert [strategy.spec for strategy in again] == written
    assert [strategy.label for strategy in again] == [strategy.label for strategy in strategies]


def test_each_is_read_in_its_shortest_form() -> None:
    """So that the draws above are not all refused."""
    for name in STRATEGIES:
        assert strategy_of(str(strategy_of(name).spec)) == strategy_of(name)


@settings(FEW, max_examples=100)
@given(st.text(max_size=20) | st.text("rzeadoutn:+,.1 \n\0-_é", max_size=20))
def test_anything_else_is_told(text: str) -> None:
    assume(text.strip().partition(":")[0] not in STRATEGIES)
    for read, given_text in ((strategies_of, text), (engine_of, f"ideal+{text}"), (engine_of, text)):
        try:
            read(given_text)
        except QhwError:
            continue
        assert text.strip("+ ") in ("", "ideal", "noisy"), given_text


@pytest.mark.parametrize("name", STRATEGIES)
def test_too_many_settings_are_counted(name: str) -> None:
    with pytest.raises(QhwError, match=r"settings|takes"):
        strategy_of(":".join([name, *["1"] * 40]))
