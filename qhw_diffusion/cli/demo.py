"""`qhw demo`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from qhw_diffusion.cli.flags import FromFlags, changed
from qhw_diffusion.cli.options import StudyOptions
from qhw_diffusion.runs.place import Place


def _place(given: Mapping[str, Any], what: str) -> Place:
    return changed(Place(Path("runs/demo" if what == "guidance" else "runs/demo-denoising")), given)  # type: ignore[no-any-return]


def demo(
    what: Positional[Literal["guidance", "denoising"]] = "guidance",
    *,
    place: Annotated[
        Place,
        FromFlags(_place, skip=("command",), help={"out": "Run folder; that of denoising is runs/demo-denoising."}),
    ] = Place(Path("runs/demo")),  # noqa: B008
    options: Annotated[
        StudyOptions, FromFlags(skip=("dry_run", "report_only", "markdown", "figures"))
    ] = StudyOptions(),  # noqa: B008
) -> int:
    """Train under device noise, compare, report: the main job in minutes.

    Args:
        what: demo: guidance (a quantum policy steers the embedded text-to-image model) or denoising (a quantum
            denoiser).
        place: run folder; that of denoising is runs/demo-denoising.
        options: how it is run.
    """
    from qhw_diffusion.checkpoints import one_thread
    from qhw_diffusion.experiment import load_study, reopen_study
    from qhw_diffusion.experiment.command import study_command

    one_thread()
    study: Any = load_study(what)
    config = (study.demo_quick or study.quick) if options.quick else study.demo
    if place.resume:
        config = study.config.from_dict(reopen_study(study, place.out).config)
    place.check(study.kind)
    how: dict[str, Any] = {"resume": place.resume, "overwrite": place.overwrite, "workers": options.workers}
    print(study_command(study, config, place.out, command=place.command, **how))
    return 0
