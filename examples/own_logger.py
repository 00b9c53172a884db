"""A logger of your own: anything made with a run folder that takes the numbers of every step.

This one draws the losses as bars in a text file. With a method picture(step, name, png) it would be given what is drawn
as well. One that fails is told once and left out: no training is lost.

Python:        with logging_to(["examples/own_logger.py:Sparkline"]): train_guidance(…)
Command line:  qhw train guidance --logger examples/own_logger.py:Sparkline --logger tensorboard
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qhw_diffusion.diffusion import ClassifierConfig, train_classifier
from qhw_diffusion.runs import RunFolder, logging_to

BARS = "▁▂▃▄▅▆▇█"


class Sparkline:
    """Losses as bars, in `losses.txt` in the run folder."""

    def __init__(self, run: RunFolder) -> None:
        # run.name, run.id, run.kind and run.config say which run it is; run.logged_again_from, where one was resumed
        self.file = run.path / "losses.txt"
        self.losses: list[float] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the losses of a step; names are such as losses/policy and charts/reward, values finite."""
        self.losses += [value for name, value in values.items() if name.startswith("losses/")]

    def close(self) -> None:
        """Write what was kept; `run.outcome` would say how the run has ended."""
        low, high = min(self.losses), max(self.losses)
        steps = [round((len(BARS) - 1) * (value - low) / (high - low or 1)) for value in self.losses]
        self.file.write_text("".join(BARS[step] for step in steps) + f" {low:.3f} to {high:.3f}\n", encoding="utf-8")


def main() -> None:
    """A short training of a classifier, logged here."""
    config = ClassifierConfig(steps=120)
    with (
        logging_to([f"{__file__}:Sparkline"]),
        RunFolder.create(Path("run"), kind="classifier", config=config.to_dict()) as run,
    ):
        train_classifier(config, run)
    print((run.path / "losses.txt").read_text(encoding="utf-8").strip())


if __name__ == "__main__":
    main()
