"""The `qhw` command: the table of commands, help, and what errors become.

Light: nothing heavy is imported before a command is chosen, and then only that command's module.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import qhw_diffusion
from qhw_diffusion.cli.flags import Call, UsageError, read_call
from qhw_diffusion.config import threads_asked
from qhw_diffusion.errors import QhwError, UnknownNameError
from qhw_diffusion.extensions import is_extension
from qhw_diffusion.masking import traceback_of, without_tokens
from qhw_diffusion.terminal import os_error_text, some_home, too_large_text, usable_streams

if TYPE_CHECKING:
    from qhw_diffusion.runs.place import Place

INTERRUPTED, FAILED = 130, 2

# words in front of several commands → what these do
GROUPS = {
    "train": "train a policy, a denoiser, a diffusion model, an autoencoder or a classifier",
    "evaluate": "evaluate a trained policy, denoiser, backbone or text-to-image model",
    "study": "run an experiment with statistics and a report",
    "study perception": "ask people which of two pictures they prefer, and analyse what they answered",
    "calibration": "look at devices: snapshots, tables, drift, good qubits",
    "ledger": "look after the jobs that were sent: what ran, what it cost, what to do next",
}
# words of a command → (summary, the function that does it: `module:name`, imported when the command is chosen)
COMMANDS: dict[tuple[str, ...], tuple[str, str | Callable[..., int]]] = {
    ("demo",): ("train under device noise, compare, report: the main job in minutes", "qhw_diffusion.cli.demo:demo"),
    ("train", "guidance"): ("train a guidance policy", "qhw_diffusion.cli.guidance:train_guidance"),
    ("train", "backbone"): ("train a diffusion backbone", "qhw_diffusion.cli.models:train_backbone"),
    ("train", "autoencoder"): (
        "train the autoencoder of a latent diffusion model",
        "qhw_diffusion.cli.models:train_autoencoder",
    ),
    ("train", "classifier"): (
        "train a reward classifier or an evaluation classifier",
        "qhw_diffusion.cli.models:train_classifier",
    ),
    ("train", "pipeline"): (
        "train the text-to-image model of the coloured digits",
        "qhw_diffusion.cli.models:train_pipeline",
    ),
    ("train", "prompt-classifier"): (
        "train a reward classifier or an evaluation classifier of the coloured digits",
        "qhw_diffusion.cli.models:train_prompt_classifier",
    ),
    ("train", "denoising"): ("train a quantum denoiser", "qhw_diffusion.cli.denoising:train_denoising"),
    ("sample",): (
        "sample a text-to-image pipeline, steered by a trained policy or a guidance scale",
        "qhw_diffusion.cli.sample:sample",
    ),
    ("evaluate", "guidance"): (
        "evaluate a trained policy: simulated, or with --shots on a device",
        "qhw_diffusion.cli.policies:evaluate_guidance",
    ),
    ("evaluate", "backbone"): (
        "sample a diffusion backbone at constant guidance scales, and measure the images",
        "qhw_diffusion.cli.models:evaluate_backbone",
    ),
    ("evaluate", "denoising"): (
        "sample a trained denoiser: simulated, or with --device and --shots on a device",
        "qhw_diffusion.cli.denoising:evaluate_denoising",
    ),
    ("evaluate", "pipeline"): (
        "measure the text-to-image model of the coloured digits at constant guidance scales",
        "qhw_diffusion.cli.models:evaluate_pipeline",
    ),
    ("fine-tune",): (
        "train a policy or a denoiser on a device for a few updates, and compare it with itself before",
        "qhw_diffusion.cli.policies:fine_tune",
    ),
    ("distill",): (
        "turn a quantum policy into a table or a small network, and measure what is lost",
        "qhw_diffusion.cli.policies:distill",
    ),
    ("study", "perception", "make"): (
        "write a page that shows people pairs of pictures and asks which they prefer",
        "qhw_diffusion.cli.perception:make",
    ),
    ("study", "perception", "analyse"): (
        "read what people answered: preference with interval, agreement, correlation with metrics",
        "qhw_diffusion.cli.perception:analyse",
    ),
    ("devices",): (
        "list the devices: live ones with queue and errors where there is an account, else the fake ones",
        "qhw_diffusion.cli.devices:devices",
    ),
    ("cost",): (
        "estimate the QPU seconds of a run or a circuit before anything is sent",
        "qhw_diffusion.cli.devices:cost",
    ),
    ("calibration", "snapshot"): (
        "save a device's calibration of today as a file",
        "qhw_diffusion.cli.devices:calibration_snapshot",
    ),
    ("calibration", "show"): ("print a calibration, and draw it", "qhw_diffusion.cli.devices:calibration_show"),
    ("calibration", "diff"): (
        "compare a device's calibrations of two dates",
        "qhw_diffusion.cli.devices:calibration_diff",
    ),
    ("calibration", "best-qubits"): (
        "rank the places for a circuit on a device by predicted error",
        "qhw_diffusion.cli.devices:calibration_best_qubits",
    ),
    ("ledger", "list"): ("list the jobs and what they cost", "qhw_diffusion.cli.ledger:list_jobs"),
    ("ledger", "show"): ("print everything about one job, and what to do next", "qhw_diffusion.cli.ledger:show_job"),
    ("ledger", "adopt"): (
        "give a planned job the id of a job found by hand",
        "qhw_diffusion.cli.ledger:adopt_job",
    ),
    ("ledger", "export"): ("write jobs and results to a CSV or JSON file", "qhw_diffusion.cli.ledger:export_jobs"),
    ("ledger", "cap"): (
        "show, set or remove the cap on the QPU seconds of all jobs",
        "qhw_diffusion.cli.ledger:cap_ledger",
    ),
    ("ledger", "recover"): (
        "check the ledger and its results, and mend what is damaged; the original is kept",
        "qhw_diffusion.cli.ledger:recover_ledger",
    ),
    ("standin",): (
        "serve a fake device the way IBM's service would, on this machine",
        "qhw_diffusion.cli.devices:standin",
    ),
    ("doctor",): (
        "check what this machine has and lacks, and say what to do about it",
        "qhw_diffusion.cli.doctor:doctor",
    ),
    ("version",): (
        "print the versions of the package and of what results depend on",
        "qhw_diffusion.cli.devices:version",
    ),
}


def _add_studies() -> None:
    """The studies on the experiment runner: a folder each in `studies/`; the summary is read when help is shown."""
    later = dict(list(COMMANDS.items())[list(COMMANDS).index(("devices",)) :])  # they stand before these in the help
    for path in later:
        del COMMANDS[path]
    for file in sorted((Path(qhw_diffusion.__file__).parent / "studies").glob("*/experiment.py")):
        COMMANDS["study", file.parent.name] = ("", f"qhw_diffusion.cli.study:{file.parent.name}")
    COMMANDS.update(later)


def _summary(path: tuple[str, ...]) -> str:
    """What a command does, in a line."""
    file = Path(qhw_diffusion.__file__).parent / "studies" / path[-1] / "experiment.py"
    return COMMANDS[path][0] or _study_summary(file.read_text(encoding="utf-8"))


def _study_summary(source: str) -> str:
    """What a study says of itself in its `Study(name, title, summary=…)`, without importing it: summary, else title."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    for study in (call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Study"):
        given = dict(zip(("name", "title"), study.args, strict=False)) | {w.arg: w.value for w in study.keywords}
        for told in (given.get("summary"), given.get("title")):
            if isinstance(told, ast.Constant):
                return str(told.value)
    return ""


_add_studies()


# -- the command -------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qhw` with these arguments.

    Args:
        argv: the arguments; None for the process's.

    Returns:
        0, an error's `exit_code`, or 130 after Ctrl-C.

    Raises:
        SystemExit: with code 0 after help, with code 2 after words that no command takes.
    """
    if argv is None:  # the process is ours, and so is what it says when it ends by an error nobody expected
        sys.excepthook = lambda kind, error, trace: print(traceback_of(error), end="", file=sys.stderr)
    with usable_streams():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(words: list[str]) -> int:
    if any("\0" in word for word in words):  # not from a shell; a path with one is a ValueError everywhere
        print("qhw: error: an argument holds a NUL character, which no name can have", file=sys.stderr)
        return FAILED
    command_line = without_tokens(shlex.join(["qhw", *words]))
    try:
        path, rest, debug = _chosen(words)
    except OSError as error:  # help that cannot be written
        print(f"qhw: error: {os_error_text(error)}", file=sys.stderr)
        return FAILED
    # one thread per process, also in the libraries below torch: fastest for small networks, and reproducible
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = datetime.now(UTC)
    call = Call(lambda: 0)
    try:
        with some_home():
            prog = " ".join(["qhw", *path])
            try:
                call = call_of(path, rest, command_line)
            except UsageError as error:
                _refuse(prog, str(error))
            except SystemExit:  # after help
                sys.stdout.flush()
                raise
            if path != ("doctor",):  # which tells it in its own line
                threads_asked()  # a wrong number is told before any work
            code = int(call.run())
        sys.stdout.flush()  # what cannot be written is told here, not by Python at exit
        return code
    except (
        QhwError,
        OSError,
        KeyboardInterrupt,
        ArithmeticError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        too_large = "" if isinstance(error, QhwError | OSError) else too_large_text(error)
        if debug or not (too_large or isinstance(error, QhwError | OSError | KeyboardInterrupt)):
            raise
        if too_large:
            print(f"qhw: error: {without_tokens(too_large)}{_large_numbers(words)}", file=sys.stderr)
            return FAILED
        left = _how_to_go_on(call.place, started)
        if isinstance(error, QhwError):
            print(f"qhw: error: {error}", file=sys.stderr)
            return error.exit_code
        if isinstance(error, OSError):
            print(f"qhw: error: {os_error_text(error)}{left}", file=sys.stderr)
            return FAILED
        if not left and call.place is not None:
            left = "; nothing was saved yet: the same command starts from the beginning"
        print(f"qhw: stopped{left}", file=sys.stderr)
        return INTERRUPTED


def _large_numbers(words: Sequence[str]) -> str:
    """The flags of a command line that have large numbers, for the message; empty where there are none."""
    told = []
    for before, word in zip(["", *words], words, strict=False):
        flag, _, value = word.rpartition("=")
        if sum(sign.isdigit() for sign in value) > 5:
            told.append(word if flag else f"{before} {word}" if before.startswith("--") else word)
    return f": given are {', '.join(told)}" if told else ""


def _chosen(words: list[str]) -> tuple[tuple[str, ...], list[str], bool]:
    """Words of the command, the rest, and whether --debug stands in front; ends the process where none is chosen."""
    debug = False
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word in ("-h", "--help"):
            _print_help(())
        elif word == "--version":
            print(f"qhw-diffusion {qhw_diffusion.__version__}", flush=True)
            raise SystemExit(0)
        elif word != "--debug":
            _refuse(
                "qhw", f"unrecognized arguments: {word}; in front of the command stand --debug, --version and --help"
            )
        debug = True
    names = sorted({path[0] for path in COMMANDS})
    if not words:
        _refuse("qhw", f"give a command: {', '.join(names)}; qhw --help says what they do")
    if words[0] not in names:
        _refuse("qhw", str(UnknownNameError.of("command", words[0], names)))
    path: tuple[str, ...] = (words.pop(0),)
    while path not in COMMANDS:  # a group: its next word
        names = list(dict.fromkeys(other[len(path)] for other in COMMANDS if other[: len(path)] == path))
        prog = " ".join(["qhw", *path])
        if not words:
            _refuse(prog, f"say what: {', '.join(names)}; {prog} --help says what they do")
        if words[0] in ("-h", "--help"):
            _print_help(path)
        if words[0] not in names and not (path == ("study",) and is_extension(words[0])):
            _refuse(prog, str(UnknownNameError.of(f"command of {prog}", words[0], names, own=path == ("study",))))
        path = (*path, words.pop(0))
        if path[-1] not in names:
            break  # a study of a user's own
    return path, words, debug


def _print_help(group: tuple[str, ...]) -> NoReturn:
    shown = {" ".join(path): _summary(path) for path in COMMANDS if path[: len(group)] == group}
    width = max(map(len, shown))
    about = f"{GROUPS[' '.join(group)].capitalize()}." if group else "Quantum circuits inside diffusion models."
    usage = f"qhw {' '.join(group)} WHAT …" if group else "qhw [--version] [--debug] COMMAND …"
    print(f"usage: {usage}\n\n{about}\n\ncommands:")
    print("\n".join(f"  {name:<{width}}  {text}" for name, text in shown.items()))
    if group in ((), ("study",)):
        print(f"  {'study FILE.py:NAME':<{width}}  a study of your own, also module:NAME")
    if not group:
        print("\noptions:\n  --version  print the version\n  --debug    show the traceback of an error")
    print(
        f"\nqhw {' '.join((*group, 'COMMAND' if not group else 'WHAT'))} --help tells the options of one.", flush=True
    )
    raise SystemExit(0)


def _refuse(prog: str, message: str) -> NoReturn:
    print(without_tokens(f"{prog}: error: {message}").replace("\n", " "), file=sys.stderr)
    raise SystemExit(FAILED)


def _how_to_go_on(place: Place | None, started: datetime) -> str:
    """How a command that was cut short goes on, if its folder holds something to go on from; else empty.

    A run folder that this command made stays only once there is a checkpoint or a result in it (`RunFolder.begin`), so
    that it is there says that --resume goes on; an older one in the same place does not.
    """
    if place is None:
        return ""
    try:
        made = datetime.fromisoformat(json.loads((place.out / "manifest.json").read_text(encoding="utf-8"))["created"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    if not place.resume and made < started:
        return ""
    return f"; the same command with --resume{' in place of --overwrite' * place.overwrite} goes on"


def call_of(path: tuple[str, ...], words: Sequence[str], command_line: str) -> Call:
    """A command of the table with the arguments that `words` give.

    Raises:
        UsageError: words that it does not take.
        SystemExit: after its help.
    """
    summary, target = COMMANDS.get(path, ("", ""))
    if not target:  # a study of a user's own
        from qhw_diffusion.cli.study import StudyCommand

        return StudyCommand(path[1]).call(words, f"qhw study {path[1]}", "", command_line)
    if isinstance(target, str):
        module, _, name = target.partition(":")
        target = getattr(importlib.import_module(module), name)
    prog = " ".join(["qhw", *path])
    if hasattr(target, "call"):  # it reads its words itself
        return target.call(words, prog, summary, command_line)  # type: ignore[no-any-return]
    return read_call(target, words, prog=prog, command_line=command_line)
