"""`qhw evaluate guidance RUN --device … --shots …`: cost, rollout, comparison, report."""

from __future__ import annotations

from pathlib import Path

from qhw_diffusion.checkpoints import one_thread
from qhw_diffusion.guidance.on_device.analysis import (
    MIN_FD_IMAGES,
    Compared,
    check_steps,
    compare_controllers,
    results_of,
)
from qhw_diffusion.guidance.on_device.report import render_rollout
from qhw_diffusion.guidance.on_device.rollout import (
    KIND,
    Played,
    Prepared,
    RolloutConfig,
    play,
    prepare,
    with_final_receipts,
)
from qhw_diffusion.on_device.access import AccessConfig, at_device, open_access
from qhw_diffusion.on_device.filed import spent_so_far
from qhw_diffusion.on_device.receipt import run_name
from qhw_diffusion.runs import Place, atomic_write_json

IMAGES = 32


def rollout_on_device(
    run: Path,
    access_config: AccessConfig,
    place: Place,
    *,
    images: int = IMAGES,
    seed: int = 0,
    evaluation_classifier: str | None = None,
    data_root: str | None = None,
) -> str:
    """Steer images by a trained policy on a device, compare, and write the report.

    Args:
        run: run folder of the policy.
        access_config: how circuits get to the device.
        place: folder of the rollout; its name stands for the run in the ledger.
        images: images steered together: rows of every job.
        seed: seed of labels and starting noise.
        evaluation_classifier: folder of the evaluation classifier; None for the run's own.
        data_root: folder of the data set; None for the run's own.

    Returns:
        The text for the terminal.

    Raises:
        KeyboardInterrupt: after Ctrl-C, with a checkpoint.
        QhwError: what the errors of the runner mean is in errors.py.
    """
    one_thread()
    place.check(KIND)
    asked = RolloutConfig.through(access_config, run, images=images, seed=seed)
    given = {"evaluation_classifier": evaluation_classifier, "data_root": data_root}
    changes = {name: value for name, value in given.items() if value is not None}
    out = place.out
    prepared = prepare(
        asked, out, resume=place.resume, overwrite=place.overwrite, command=place.command, changes=changes
    )
    steps = prepared.guidance.n_steps
    with prepared.folder as folder:
        with open_access(access_config, run_name(folder, asked.device)) as access:
            access.require_cap()
            print(access.cost_text(access.cost(prepared.compiled, asked.images, calls=steps)), flush=True)
            with at_device(folder, access):
                played = play(
                    prepared, access, resume=place.resume, on_step=lambda done, so_far: _say(done, so_far, prepared)
                )
            if played is not None:
                played = with_final_receipts(prepared, played, access)
            paid, spent = access.paid, spent_so_far(access)
        if played is None:
            raise KeyboardInterrupt
        compared = compare_controllers(prepared, played)
        atomic_write_json(out / "results.json", results_of(prepared, played, compared))
        command = folder.manifest["command"] or place.command
        report = render_rollout(prepared, played, compared, mode=access_config.mode, paid=paid, command=command)
        folder.tell(spent)
    return _text(compared, report)


def _say(done: int, so_far: Played, prepared: Prepared) -> None:
    check, receipt = check_steps(so_far, prepared.asked.shots)[-1], so_far.receipts[-1]
    seconds = f", {receipt.qpu_seconds:.1f} QPU s" if receipt.qpu_seconds else ""
    jobs, steps, g = receipt.jobs_text, prepared.guidance.n_steps, float(so_far.g[-1].mean())
    print(
        f"step {done} of {steps}: {jobs}{seconds}; g {g:.2f}; measured − predicted ⟨Z⟩ {check.rms:.4f} rms "
        f"({check.expected_rms:.4f} from shots), χ² {check.chi2:.2f}",
        flush=True,
    )


def _text(compared: list[Compared], report: Path) -> str:
    lines = [f"{'policy':<40} {'energy':>8} {'FD':>8} {'accuracy':>9} {'mean g':>7}"]
    for one in compared:
        energy, fd = (f"{one.judged[k]:.{n}f}" if k in one.judged else "–" for k, n in (("energy", 3), ("fd", 2)))
        told = f"{energy:>8} {fd:>8} {one.judged['accuracy']:>9.1%} {float(one.g.mean()):>7.2f}"
        lines.append(f"{one.name:<40} {told}")
    if any("fd" not in one.judged for one in compared):
        lines.append(f"energy distance and FD need at least {MIN_FD_IMAGES} images (--images)")
    return "\n".join([*lines, f"report: {report}"])
