"""The sub-commands about real devices: which there are, what a job costs, a stand-in for the service. Thin."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

Parser = argparse.ArgumentParser


def _flags_devices(parser: Parser) -> None:
    parser.add_argument("--fake", action="store_true", help="the fake devices, also where there is an account")
    parser.add_argument("--json", action="store_true", help="print JSON")


def devices(arguments: argparse.Namespace) -> int:
    """`qhw devices`."""
    from qhw_diffusion.devices import fake_backend_names, has_account

    if arguments.fake or not has_account():
        names = ["ideal", *fake_backend_names()]
        print(json.dumps([{"name": name} for name in names], indent=2) if arguments.json else "\n".join(names))
        if not arguments.fake:
            from qhw_diffusion.devices.account import SETUP

            print(f"live devices are listed too once there is an IBM Quantum account. {SETUP}", file=sys.stderr)
        return 0
    from qhw_diffusion.studies.live_devices import list_live_devices, live_devices_text

    found = list_live_devices()
    if arguments.json:
        print(json.dumps([device.to_dict() for device in found], indent=2))
    else:
        print(live_devices_text(found))
        print("fake devices: qhw devices --fake", file=sys.stderr)
    return 0


def _flags_cost(parser: Parser) -> None:
    text = "run folder of a quantum policy (`qhw train guidance`, `qhw fine-tune`), or a circuit (.qpy)"
    parser.add_argument("target", metavar="RUN|CIRCUIT", help=text)
    parser.add_argument("--device", metavar="NAME", help="live (ibm_…), fake, or a snapshot file [the run's own]")
    parser.add_argument("--shots", type=int, default=4096, metavar="N", help="of each circuit [4096]")
    parser.add_argument("--images", type=int, metavar="N", help="of a run: one circuit an image and step [32]")
    parser.add_argument("--rows", type=int, metavar="N", help="of a circuit file: rows of parameters [1]")
    text = "of the client's estimator: 0 none, 1 readout, 2 also zero-noise extrapolation [0]"
    parser.add_argument("--resilience-level", type=int, default=0, metavar="L", help=text)
    text = "mitigation of ours, as for `qhw evaluate guidance`, such as readout+zne:linear:1,3"
    parser.add_argument("--mitigation", default="", metavar="TEXT", help=text)
    text = "µs between two shots, within the device's range [the device's default]"
    parser.add_argument("--repetition-delay", type=float, metavar="US", help=text)
    text = "ledger whose finished jobs correct the estimate [$QHW_LEDGER, else runs/ledger, if there is one]"
    parser.add_argument("--ledger", type=Path, metavar="DIR", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")


def cost(arguments: argparse.Namespace) -> int:
    """`qhw cost RUN|CIRCUIT`."""
    from qhw_diffusion.devices import Device
    from qhw_diffusion.hardware.cost import EXTRAPOLATED
    from qhw_diffusion.studies.hardware_cost import cost_json, cost_of, cost_text, ledger_rows, workload_of

    device = None if arguments.device is None else Device.load(arguments.device)
    workload = workload_of(arguments.target, device, images=arguments.images, rows=arguments.rows)
    delay = arguments.repetition_delay
    found = cost_of(
        workload,
        shots=arguments.shots,
        resilience_level=arguments.resilience_level,
        mitigation=arguments.mitigation,
        repetition_delay=None if delay is None else delay * 1e-6,
        ledger=ledger_rows(arguments.ledger),
    )
    print((cost_json if arguments.json else cost_text)(workload, found))
    if arguments.resilience_level == 2:
        print(EXTRAPOLATED, file=sys.stderr)
    return 0


def _flags_standin(parser: Parser) -> None:
    text = "fake device whose configuration and calibration are served [fake_manila]"
    parser.add_argument("--device", default="fake_manila", metavar="NAME", help=text)
    parser.add_argument(
        "--name", default="ibm_standin", metavar="NAME", help="the name it is served under [ibm_standin]"
    )
    parser.add_argument("--port", type=int, default=8765, metavar="N", help="on 127.0.0.1; 0: any free one [8765]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the outcomes [0]")


def standin(arguments: argparse.Namespace) -> int:
    """`qhw standin`."""
    from qhw_diffusion.hardware.standin import serve_forever

    serve_forever(device=arguments.device, name=arguments.name, port=arguments.port, seed=arguments.seed)
    return 0


COMMANDS: dict[tuple[str, ...], tuple[str, Callable[[Parser], None] | None, Callable[[argparse.Namespace], int]]] = {
    ("devices",): (
        "list the devices: live ones with queue and errors where there is an account, else the fake ones",
        _flags_devices,
        devices,
    ),
    ("cost",): ("estimate the QPU seconds of a run or a circuit before anything is sent", _flags_cost, cost),
    ("standin",): ("serve a fake device the way IBM's service would, on this machine", _flags_standin, standin),
}
