"""The `qhw` command. Thin: one function per sub-command; heavy libraries load only when a sub-command needs them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import qhw_diffusion
from qhw_diffusion.errors import QhwError
from qhw_diffusion.masking import traceback_of, without_tokens
from qhw_diffusion.studies import (
    denoising_cli,
    device_studies_cli,
    guidance_cli,
    guidance_hardware_cli,
    hardware_cli,
    ledger_cli,
)
from qhw_diffusion.studies.common_flags import flags_out, flags_workers
from qhw_diffusion.terminal import os_error_text, some_home, usable_streams


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments without the credentials in them."""

    def error(self, message: str) -> NoReturn:
        super().error(without_tokens(message))


Command = Callable[[argparse.Namespace], int]

INTERRUPTED, FAILED = 130, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qhw` with these arguments (default: the process's); returns 0, an error's `exit_code`, or 130 (Ctrl-C)."""
    if argv is None:  # the process is ours, and so is what it says when it ends by an error nobody expected
        sys.excepthook = lambda kind, error, trace: print(traceback_of(error), end="", file=sys.stderr)
    with usable_streams():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> int:
    if any("\0" in word for word in arguments):  # not from a shell; a path with one is a ValueError everywhere
        print("qhw: error: an argument holds a NUL character, which no name can have", file=sys.stderr)
        return FAILED
    namespace = build_parser(arguments).parse_args(arguments)
    namespace.command_line = without_tokens(shlex.join(["qhw", *arguments]))
    # one thread per process, also in the libraries below torch: fastest for small networks, and reproducible
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = datetime.now(UTC).replace(microsecond=0)
    try:
        with some_home():
            code = int(namespace.run(namespace))
        sys.stdout.flush()  # what cannot be written is told here, not by Python at exit
        return code
    except QhwError as error:
        if namespace.debug:
            raise
        print(f"qhw: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if namespace.debug:
            raise
        print(f"qhw: error: {os_error_text(error)}{_how_to_go_on(namespace, started)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        if namespace.debug:
            raise
        left = _how_to_go_on(namespace, started)
        if not left and hasattr(namespace, "overwrite"):
            left = "; nothing was saved yet: the same command starts from the beginning"
        print(f"qhw: stopped{left}", file=sys.stderr)
        return INTERRUPTED


def _how_to_go_on(namespace: argparse.Namespace, started: datetime) -> str:
    """How a command that was cut short goes on, if its folder holds something to go on from; else empty.

    A run folder that this command made stays only once there is a checkpoint or a result in it (`RunFolder.begin`), so
    that it is there says that --resume goes on; an older one in the same place does not.
    """
    out = getattr(namespace, "out", None)
    if out is None or not hasattr(namespace, "resume"):
        return ""
    try:
        made = datetime.fromisoformat(json.loads((out / "manifest.json").read_text(encoding="utf-8"))["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if not namespace.resume and made < started:
        return ""
    return f"; the same command with --resume{' in place of --overwrite' * bool(namespace.overwrite)} goes on"


def build_parser(arguments: Sequence[str] = ()) -> Parser:
    """The parser; settings flags are made only for the sub-command that `arguments` select (making them is slow)."""
    selected = tuple(word for word in arguments if not word.startswith("-"))[:2]
    parser = Parser(prog="qhw", description="Quantum circuits inside diffusion models.")
    parser.add_argument("--version", action="version", version=f"qhw-diffusion {qhw_diffusion.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    made: dict[str, argparse._SubParsersAction[Parser]] = {}
    for path, (text, flags, run) in COMMANDS.items():
        where = commands
        if len(path) == 2:
            if path[0] not in made:
                group = commands.add_parser(path[0], help=GROUPS[path[0]], description=GROUPS[path[0]] + ".")
                made[path[0]] = group.add_subparsers(title="what", metavar="WHAT", required=True)
            where = made[path[0]]
        description = text[0].upper() + text[1:] + "."
        command = where.add_parser(path[-1], help=text, description=description, allow_abbrev=False)
        command.set_defaults(run=run)
        if flags is not None and selected[: len(path)] == path:
            flags(command)
    return parser


# -- demo --------------------------------------------------------------------------------------------------------------


def _flags_demo(parser: Parser) -> None:
    text = "guidance (default): a quantum controller of classifier-free guidance; denoising: a quantum denoiser"
    parser.add_argument("what", nargs="?", choices=("guidance", "denoising"), default="guidance", help=text)
    flags_out(parser, None, resume=True)
    parser.add_argument("--quick", action="store_true", help="fewer seeds and images: about a minute")
    flags_workers(parser)


def demo(arguments: argparse.Namespace) -> int:
    """`qhw demo [guidance|denoising]`."""
    if arguments.what == "denoising":
        from qhw_diffusion.studies.denoising_commands import demo_from_arguments

        arguments.out = arguments.out or Path("runs/demo-denoising")
        print(demo_from_arguments(arguments))
        return 0
    from qhw_diffusion.experiment import load_study, reopen_study
    from qhw_diffusion.experiment.command import study_command
    from qhw_diffusion.studies.guidance.experiment import DEMO, QUICK
    from qhw_diffusion.studies.single import one_thread

    one_thread()
    out, study, config = arguments.out or Path("runs/demo"), load_study("guidance"), QUICK if arguments.quick else DEMO
    if arguments.resume:
        config = study.config.from_dict(reopen_study(study, out).config)
    how = {name: getattr(arguments, name) for name in ("resume", "overwrite", "workers")}
    print(study_command(study, config, out, command=arguments.command_line, **how))
    return 0


# -- calibration -----------------------------------------------------------------------------------------------------


def _flags_calibration_snapshot(parser: Parser) -> None:
    parser.add_argument("device", metavar="DEVICE", help="fake device (`qhw devices`), or a live one (ibm_…)")
    text = "file to write, *.json.gz or *.json [DEVICE-DATE.json.gz in this folder, with the calibration's date]"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def calibration_snapshot(arguments: argparse.Namespace) -> int:
    """`qhw calibration snapshot DEVICE`."""
    from qhw_diffusion.devices import take_snapshot

    print(take_snapshot(arguments.device, arguments.out, overwrite=arguments.overwrite))
    return 0


def _flags_calibration_show(parser: Parser) -> None:
    parser.add_argument("device", metavar="FILE|DEVICE", help="snapshot file, or name of a fake device")
    parser.add_argument("--qubits", metavar="LIST", help="these qubits only, such as 0-20 or 3,7-9 [all]")
    text = "also draw the coupling map, coloured by error, into a .png, .svg or .pdf file"
    parser.add_argument("--picture", type=Path, metavar="FILE", help=text)


def calibration_show(arguments: argparse.Namespace) -> int:
    """`qhw calibration show FILE|DEVICE`."""
    from qhw_diffusion.devices import Calibration, Device, calibration_text, draw_calibration, parse_qubits

    calibration = Calibration.of(Device.load(arguments.device))
    qubits = None if arguments.qubits is None else parse_qubits(arguments.qubits, calibration.device)
    if arguments.picture is not None:
        draw_calibration(calibration, arguments.picture, qubits)
    print(calibration_text(calibration, qubits))
    return 0


def _flags_calibration_diff(parser: Parser) -> None:
    parser.add_argument("before", metavar="A", help="snapshot file, or name of a fake device")
    parser.add_argument("after", metavar="B", help="the same device later")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many of the largest changes [10]")


def calibration_diff(arguments: argparse.Namespace) -> int:
    """`qhw calibration diff A B`."""
    from qhw_diffusion.devices import Device, Drift, drift_text

    print(drift_text(Drift.between(Device.load(arguments.before), Device.load(arguments.after)), arguments.top))
    return 0


def _flags_calibration_best_qubits(parser: Parser) -> None:
    parser.add_argument("device", metavar="DEVICE", help="snapshot file, or name of a fake device")
    parser.add_argument("--circuit", required=True, metavar="FILE", help="logical circuit, a .qpy file (see circuits/)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many placements to print [5]")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="transpilations to start from [5]")


def calibration_best_qubits(arguments: argparse.Namespace) -> int:
    """`qhw calibration best-qubits DEVICE --circuit FILE`."""
    from qhw_diffusion.circuits import load_circuit
    from qhw_diffusion.devices import Device, layouts_text, rank_layouts

    device, circuit = Device.load(arguments.device), load_circuit(arguments.circuit)
    print(layouts_text(rank_layouts(device, circuit, top=arguments.top, seeds=arguments.seeds)))
    return 0


def version(arguments: argparse.Namespace) -> int:
    """`qhw version`."""
    from qhw_diffusion.runs import package_versions

    print(f"qhw-diffusion {qhw_diffusion.__version__}")
    print("\n".join(f"{name} {number}" for name, number in package_versions().items()))
    return 0


GROUPS = {
    "train": "train a controller, a denoiser, a backbone or a classifier",
    "evaluate": "evaluate a trained controller or denoiser",
    "study": "run an experiment with statistics and a report",
    "calibration": "look at devices: snapshots, tables, drift, good qubits",
    "ledger": "look after the jobs that were sent: what ran, what it cost, what to do next",
}
COMMANDS: dict[tuple[str, ...], tuple[str, Callable[[Parser], None] | None, Command]] = {
    ("demo",): ("the main job in minutes: train under device noise, compare, report", _flags_demo, demo),
    **guidance_cli.COMMANDS,
    **guidance_hardware_cli.COMMANDS,
    **denoising_cli.COMMANDS,
    **device_studies_cli.COMMANDS,
    ("calibration", "snapshot"): (
        "save a device's calibration of today as a file",
        _flags_calibration_snapshot,
        calibration_snapshot,
    ),
    ("calibration", "show"): ("print a calibration, and draw it", _flags_calibration_show, calibration_show),
    ("calibration", "diff"): ("how a device changed between two dates", _flags_calibration_diff, calibration_diff),
    ("calibration", "best-qubits"): (
        "rank the places for a circuit on a device by predicted error",
        _flags_calibration_best_qubits,
        calibration_best_qubits,
    ),
    **hardware_cli.COMMANDS,
    **ledger_cli.COMMANDS,
    ("version",): ("versions of the package and what results depend on", None, version),
}

if __name__ == "__main__":
    sys.exit(main())
