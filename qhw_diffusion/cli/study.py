"""`qhw study …`: the studies of the package and a user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from qhw_diffusion.cli.flags import Call, FromFlags, changed, read_call
from qhw_diffusion.cli.options import StudyOptions
from qhw_diffusion.runs.place import Place


def __getattr__(name: str) -> StudyCommand:
    """The command of a study of the package, by its name."""
    from qhw_diffusion.experiment import studies

    if name not in studies():
        raise AttributeError(name)
    return StudyCommand(name)


@dataclass(frozen=True)
class StudyCommand:
    """A study on the experiment runner, named as in the package, or ``module:name`` or ``file.py:name``."""

    name: str

    def call(self, words: Sequence[str], prog: str, summary: str, command_line: str) -> Call:
        """The study with the arguments that the words give."""
        return read_call(self.function(), words, prog=prog, command_line=command_line)

    def function(self) -> Callable[..., int]:
        """The command: its configuration is the study's."""
        from qhw_diffusion.experiment import load_study, reopen_study
        from qhw_diffusion.experiment.command import study_command

        study = load_study(self.name)

        def make(given: Mapping[str, Any], place: Place, options: StudyOptions) -> Any:
            if place.resume:
                return changed(study.config.from_dict(reopen_study(study, place.out).config), given)
            return changed(study.quick if options.quick and study.quick is not None else study.config(), given)

        def command(place: Place, options: StudyOptions, config: Any, backend: str = "loky") -> int:
            from qhw_diffusion.checkpoints import one_thread

            one_thread()
            if not options.report_only and not options.dry_run:
                place.check(study.kind)
            text = study_command(
                study,
                config,
                place.out,
                command=place.command,
                resume=place.resume,
                overwrite=place.overwrite,
                workers=options.workers,
                backend=backend,
                dry_run=options.dry_run,
                report_only=options.report_only,
                markdown=options.markdown,
                figures=options.figures,
            )
            print(text)
            return 0

        command.__doc__ = f"""{study.title}.

        Args:
            place: folder of the study.
            options: how it is run.
            config: settings of the study.
            backend: where the work is spread: loky, ray[:address] or dask[:address].
        """
        place = Place(Path(f"runs/study-{study.name}"))
        signature = [
            ("place", Annotated[Place, FromFlags(skip=("command",))], place),
            ("options", Annotated[StudyOptions, FromFlags(skip=() if study.quick is not None else ("quick",))],
             StudyOptions()),
            ("config", Annotated[study.config, FromFlags(make, skip=study.no_flags, prefix=study.flag_prefixes)],
             study.config()),
            ("backend", str, "loky"),
        ]  # fmt: skip
        kind = inspect.Parameter.KEYWORD_ONLY
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, kind, default=default, annotation=hint) for name, hint, default in signature]
        )
        return command
