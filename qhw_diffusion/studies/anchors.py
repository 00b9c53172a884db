"""`qhw study anchors`: published quantum diffusion results beside ours, their sampling floor and two controls.

One file for every anchor and seed, OUT/<anchor>-seed<k>.json, written when it is done; what is there is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.denoising.ensembles import mean_fidelity, mmd, wasserstein
from qhw_diffusion.denoising.models import EnsembleQDM
from qhw_diffusion.denoising.training import train_qdm
from qhw_diffusion.errors import InvalidInputError, RunFolderError, UnknownNameError
from qhw_diffusion.experiment.statistics import Interval, mean_interval
from qhw_diffusion.runs import atomic_write_json, atomic_write_text, build_manifest, check_writable, read_json
from qhw_diffusion.studies.anchor_data import ANCHORS, ASSUMED_BY_ALL, METRICS, Anchor
from qhw_diffusion.studies.pool import Task, make_executor, run_tasks
from qhw_diffusion.studies.single import one_thread

ROWS = ("trained", "floor", "untrained", "bypassed")
EVALUATION_SEED = 1_000_000
NAMES = {"fidelity": "mean fidelity", "mmd": "MMD", "wasserstein": "Wasserstein"}
DIGITS = {"fidelity": 4, "mmd": 5, "wasserstein": 4}
COLUMNS = ("anchor", "metric", "published", "ours [95 %]", "sampling floor", "untrained", "bypassed", "verdict")


@dataclass(frozen=True)
class Effort:
    """How much of an anchor is run: states tested, and the share of its updates."""

    n_test: int = 1000
    share: float = 1.0


QUICK = Effort(n_test=200, share=0.1)


def run_anchors(
    out: Path, which: Sequence[str] = (), seeds: int = 5, workers: int = 1, quick: bool = False, command: str = ""
) -> str:
    """Do what is left of the anchors, write OUT/anchors.md; returns the same text.

    Args:
        out: folder of the results.
        which: names of `ANCHORS`; none: all.
        seeds: trainings of each, seeds 0, 1, …; data, weights, noise and outcomes differ.
        workers: processes.
        quick: a tenth of the updates, 200 states tested: to see it run, not to compare.
        command: what was typed, for the text.

    Raises:
        UnknownNameError: no such anchor.
        InvalidInputError: fewer than one seed or worker.
        RunFolderError: the folder holds results of other settings.
    """
    names = list(dict.fromkeys(which)) or list(ANCHORS)
    for name in names:
        if name not in ANCHORS:
            raise UnknownNameError.of("anchor", name, ANCHORS)
    if seeds < 1 or workers < 1:
        raise InvalidInputError(f"seeds={seeds}, workers={workers}; allowed: 1 or more of each")
    one_thread()
    check_writable(out / "anchors.md")  # before the trainings
    effort = QUICK if quick else Effort()
    tasks = []
    for name in names:
        anchor = scaled(ANCHORS[name], effort)
        for seed in range(seeds):
            if not _done(out, name, anchor, effort, seed):
                arguments = {"out": str(out), "name": name, "seed": seed, "quick": quick}
                updates = anchor.train.iterations * anchor.reverse.n_steps
                tasks.append(Task(f"{name}, seed {seed}", anchor_piece, arguments, cost=updates))
    executor = make_executor(workers) if len(tasks) > 1 else None
    try:
        run_tasks(tasks, workers=workers, desc="anchors", executor=executor)
    finally:
        if executor is not None:
            executor.shutdown()
    text = render(out, names, seeds, quick=quick, command=command)
    atomic_write_text(out / "anchors.md", text + "\n")
    return text


def scaled(anchor: Anchor, effort: Effort) -> Anchor:
    """The anchor with its share of the updates, two at least."""
    iterations = max(2, round(anchor.train.iterations * effort.share))
    return replace(anchor, train=replace(anchor.train, iterations=iterations))


def anchor_piece(out: str, name: str, seed: int, quick: bool) -> None:
    """One training of one anchor and its evaluation, to its file."""
    effort = QUICK if quick else Effort()
    anchor = scaled(ANCHORS[name], effort)
    result = {"anchor": name, "seed": seed, "n_test": effort.n_test, "settings": anchor.settings()}
    result |= run_seed(anchor, seed, effort.n_test)
    result["made_with"] = build_manifest("anchors", None)
    atomic_write_json(result_file(Path(out), name, seed), result)


def run_seed(anchor: Anchor, seed: int, n_test: int) -> dict[str, Any]:
    """{"rows": {row: {metric: value}}, "seconds"}: one training, judged on new data, new x_T and new outcomes.

    Row "floor" is a second draw of the data in place of samples, "untrained" the circuit with its first weights,
    "bypassed" x_T itself.
    """
    started = time.perf_counter()
    data = anchor.draw(anchor.train.buffer_size, torch.Generator().manual_seed(seed))
    model = EnsembleQDM(replace(anchor.reverse, seed=seed), anchor.forward)
    generator = torch.Generator().manual_seed(EVALUATION_SEED + seed)
    real, again = anchor.draw(n_test, generator), anchor.draw(n_test, generator)
    untrained = model.sample(n_test, generator).states
    bypassed = model.forward_process.prior(n_test, model.dim, generator)
    train_qdm(model, data, replace(anchor.train, seed=seed))
    trained = model.sample(n_test, generator).states
    sets = dict(zip(ROWS, (trained, again, untrained, bypassed), strict=True))
    rows = {row: measure(anchor, states, real) for row, states in sets.items()}
    return {"rows": rows, "seconds": time.perf_counter() - started}


def measure(anchor: Anchor, states: Tensor, real: Tensor) -> dict[str, float]:
    """The three metrics of states against equally many data; Wasserstein in parts of N states, averaged.

    In double precision: the MMD is a small difference of numbers near 1.
    """
    states, real = states.to(torch.complex128), real.to(torch.complex128)
    zero = torch.zeros(1, states.shape[-1], dtype=states.dtype)
    zero[0, 0] = 1
    size = min(anchor.n_train, len(states))
    parts = [slice(start, start + size) for start in range(0, len(states) - size + 1, size)]
    distance = partial(wasserstein, similarity=anchor.similarity)
    return {
        "fidelity": float(mean_fidelity(states, zero)),
        "mmd": float(mmd(states, real, similarity=anchor.similarity)),
        "wasserstein": sum(float(distance(states[part], real[part])) for part in parts) / len(parts),
    }


def result_file(out: Path, name: str, seed: int) -> Path:
    """Result of one anchor and seed."""
    return out / f"{name}-seed{seed}.json"


def _done(out: Path, name: str, anchor: Anchor, effort: Effort, seed: int) -> bool:
    file = result_file(out, name, seed)
    if not file.exists():
        return False
    saved = read_json(file)
    if saved.get("settings") != anchor.settings() or saved.get("n_test") != effort.n_test:
        raise RunFolderError(f"{file} was made with other settings; give another folder, or delete the file")
    return True


def render(out: Path, names: Sequence[str], seeds: int, *, quick: bool, command: str) -> str:
    """The table of finished anchors and what they assume, in Markdown."""
    rows, notes, commits, seconds = [], [], set(), 0.0
    for name in names:
        anchor, saved = ANCHORS[name], [read_json(result_file(out, name, seed)) for seed in range(seeds)]
        commits |= {str(result["made_with"]["commit"]) for result in saved}
        seconds += sum(result["seconds"] for result in saved)
        for metric in METRICS:
            if anchor.shape == "circle" and metric == "fidelity":
                continue  # ½ for a circle and for noise alike
            values = {row: [result["rows"][row][metric] for result in saved] for row in ROWS}
            rows.append([f"{anchor.title} (`{name}`)", NAMES[metric], *_cells(anchor, metric, values)])
        notes += ["", f"**{anchor.title}** — {anchor.source}.", "", *(f"- {line}" for line in anchor.assumed)]
    lines = ["| " + " | ".join(row) + " |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    made = f"{seeds} seeds, {seconds / 60:.1f} minutes on one core in all, commit {', '.join(sorted(commits))}."
    if quick:
        made += " **Quick: a tenth of the training; not a comparison.**"
    lines += ["", *([f"`{command}`", ""] if command else []), made, "", EXPLAINED, *notes]
    lines += ["", "**All**", "", *(f"- {line}" for line in ASSUMED_BY_ALL)]
    return "\n".join(lines)


EXPLAINED = (
    "Means over seeds with a 95 % t-interval. Mean fidelity is to the centre of the cluster: nearer to the floor (a "
    "second draw of the data) is better; the published one in brackets is of the source's own data. MMD: squared, "
    "biased as published; it compares average states. Wasserstein: cost 1 − F, sets of N. Untrained: the same circuit "
    "with its first weights. Bypassed: the states sampling starts from. Verdict on the distance to the data: beaten, "
    "the whole interval is below the published value less its error; matched, the mean is not above the published "
    "value and its error; else missed."
)


def _cells(anchor: Anchor, metric: str, values: dict[str, list[float]]) -> list[str]:
    digits = DIGITS[metric]
    ours, floor = mean_interval(values["trained"]), mean_interval(values["floor"])
    controls = [f"{mean_interval(values[row]).mean:.{digits}f}" for row in ROWS[2:]]
    published = anchor.published.get(metric)
    told = "–"
    if published is not None:
        error = f" ± {published.error:.{digits}f}" if published.error >= 10**-digits else ""
        told = f"{published.value:.{digits}f}{error}"
        told += "" if published.data is None else f" ({published.data:.{digits}f})"
    return [told, ours.format(digits), floor.format(digits), *controls, verdict(anchor, metric, values)]


def verdict(anchor: Anchor, metric: str, values: dict[str, list[float]]) -> str:
    """Ours against the published value, as distance to the data: "beaten", "matched", "missed", or "–"."""
    published = anchor.published.get(metric)
    if published is None:
        return "–"
    if metric == "fidelity":
        if published.data is None:
            return "–"
        target = mean_interval(values["floor"]).mean
        bar = abs(published.value - published.data)
        ours: Interval = mean_interval([abs(value - target) for value in values["trained"]])
    else:
        bar, ours = published.value, mean_interval(values["trained"])
    if ours.high <= bar - published.error:
        return "beaten"
    return "matched" if ours.mean <= bar + published.error else "missed"
