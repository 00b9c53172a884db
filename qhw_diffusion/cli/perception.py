"""`qhw study perception …`: a page that asks people which of two pictures they prefer, and its analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from qhw_diffusion.cli.flags import Repeated
from qhw_diffusion.errors import InvalidInputError

FOLDER = Path("runs/perception")


def make(
    runs: Positional[Annotated[tuple[str, ...], Repeated]] = (),
    *,
    images: int = 40,
    out: Path = FOLDER,
    question: Literal["prompt", "real"] = "prompt",
    checks: int = 8,
    classes: tuple[str, ...] = (),
    consent: Path | None = None,
    lpips: Path | None = None,
    seed: int = 0,
) -> int:
    """Write a page that shows people pairs of pictures and asks which they prefer.

    The page is one HTML file that needs no network, on a phone or a computer; what people answer they save as a file
    and hand over. Which picture is from which run stands in study.json beside it, and not in the page.

    Args:
        runs: two or more run folders of `qhw train guidance`, which are sampled from the same noise, and among them
            constant guidance scales as g=2.5; or folders of PNGs with the same names.
        images: pairs of pictures for every two runs.
        out: folder to write; new or empty.
        question: what is asked: prompt (which picture looks more like its class or prompt) or real (which looks more
            real).
        checks: attention checks: a picture beside the same one in noise.
        classes: what a picture of each class is to show, in the order of the labels; without it the words for the
            built-in data sets.
        consent: text file that people agree to before they begin; without it a placeholder that says what to write.
        lpips: weights of LPIPS (a safetensors file of SqueezeNet 1.1), for its correlation with what people prefer.
        seed: seed of noise and labels, and of the order in which the page numbers pictures.
    """
    from qhw_diffusion.studies.perception.make import CONSENT, Asked, make_study

    if consent is not None and not consent.is_file():
        raise InvalidInputError(f"there is no file {consent} with the text of the consent")
    text = CONSENT if consent is None else _text_of(consent)
    asked = Asked(question, images, checks, seed, tuple(classes), text, lpips)
    print(make_study(tuple(runs), out, asked))
    return 0


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{file} is no text in UTF-8 ({error})") from error


def analyse(files: Positional[Annotated[tuple[str, ...], Repeated]] = (), *, study: Path = FOLDER) -> int:
    """Read what people answered: preference with interval, agreement, correlation with metrics.

    Raters who fail the attention checks are left out and listed. Writes analysis.json and report.html into the folder
    of the study.

    Args:
        files: files that people saved, one each.
        study: folder of `qhw study perception make`.
    """
    from qhw_diffusion.checkpoints import one_thread
    from qhw_diffusion.studies.perception.analyse import analyse_answers

    one_thread()
    print(analyse_answers([Path(file) for file in files], study))
    return 0
