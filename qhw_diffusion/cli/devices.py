"""The commands about devices: lists, calibrations, costs, a stand-in for the service."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

import qhw_diffusion


def devices(*, fake: bool = False, json_: bool = False) -> int:
    """List the devices: live ones with queue and errors where there is an account, else the fake ones.

    Args:
        fake: fake devices, also where there is an account.
        json_: JSON instead of a table.
    """
    from qhw_diffusion.devices import fake_backend_names, has_account

    if fake or not has_account():
        names = ["ideal", *fake_backend_names()]
        print(json.dumps([{"name": name} for name in names], indent=2) if json_ else "\n".join(names))
        if not fake:
            from qhw_diffusion.devices.account import SETUP

            print(f"live devices are listed too once there is an IBM Quantum account. {SETUP}", file=sys.stderr)
        return 0
    from qhw_diffusion.cli.live_devices import list_live_devices, live_devices_text

    found = list_live_devices()
    if json_:
        print(json.dumps([device.to_dict() for device in found], indent=2))
    else:
        print(live_devices_text(found))
        print("fake devices: qhw devices --fake", file=sys.stderr)
    return 0


def cost(
    target: Positional[Path],
    *,
    device: str | None = None,
    shots: int = 4096,
    images: int | None = None,
    rows: int | None = None,
    resilience_level: int = 0,
    mitigation: str = "",
    primitive: Literal["estimator", "sampler"] | None = None,
    repetition_delay: float | None = None,
    ledger: Path | None = None,
    json_: bool = False,
) -> int:
    """Estimate the QPU seconds of a run or a circuit before anything is sent.

    Args:
        target: run folder of a quantum policy (`qhw train guidance`, `qhw fine-tune`) or of a denoiser (`qhw train
            denoising`), or a circuit (.qpy).
        device: device, live (ibm_…), fake, or a snapshot file; without it the run's own.
        shots: shots per circuit.
        images: images of a run; without it 32. A policy has one circuit per image and step, a denoiser one per image.
        rows: rows of parameters of a circuit file; without it 1.
        resilience_level: resilience level of the client's estimator: 0 none, 1 readout, 2 also zero-noise
            extrapolation; not for a denoiser read by a Sampler.
        mitigation: mitigation strategies of this package, as for `qhw evaluate guidance`, such as
            readout+zne:linear:1,3; not for a denoiser read by a Sampler.
        primitive: what reads a denoiser: estimator or sampler; without it the sampler for one that keeps its outcomes.
        repetition_delay: µs between two shots, within the device's range; without it the device's default.
        ledger: ledger whose finished jobs correct the estimate; without it $QHW_LEDGER, else runs/ledger, if there is
            one.
        json_: JSON instead of text.
    """
    from qhw_diffusion.cli.cost import cost_json, cost_of, cost_text, ledger_rows, workload_of
    from qhw_diffusion.devices import Device
    from qhw_diffusion.hardware.cost import EXTRAPOLATED

    loaded = None if device is None else Device.load(device)
    workload = workload_of(target, loaded, images=images, rows=rows, mitigation=mitigation, primitive=primitive)
    found = cost_of(
        workload,
        shots=shots,
        resilience_level=resilience_level,
        mitigation=mitigation,
        repetition_delay=None if repetition_delay is None else repetition_delay * 1e-6,
        ledger=ledger_rows(ledger),
    )
    print((cost_json if json_ else cost_text)(workload, found))
    if resilience_level == 2:
        print(EXTRAPOLATED, file=sys.stderr)
    return 0


def standin(*, device: str = "fake_manila", name: str = "ibm_standin", port: int = 8765, seed: int = 0) -> int:
    """Serve a fake device the way IBM's service would, on this machine.

    Args:
        device: fake device whose configuration and calibration are served.
        name: name it is served under.
        port: port on 127.0.0.1; 0 for any free one.
        seed: seed of the outcomes.
    """
    from qhw_diffusion.hardware.standin import serve_forever

    serve_forever(device=device, name=name, port=port, seed=seed)
    return 0


def calibration_snapshot(device: Positional[str], *, out: Path | None = None, overwrite: bool = False) -> int:
    """Save a device's calibration of today as a file.

    Args:
        device: fake device (`qhw devices`), or a live one (ibm_…).
        out: file to write, *.json.gz or *.json; without it DEVICE-DATE.json.gz in this folder, with the calibration's
            date.
        overwrite: replace the file if it exists.
    """
    from qhw_diffusion.devices import take_snapshot

    print(take_snapshot(device, out, overwrite=overwrite))
    return 0


def calibration_show(device: Positional[str], *, qubits: str | None = None, picture: Path | None = None) -> int:
    """Print a calibration, and draw it.

    Args:
        device: snapshot file, or name of a fake device.
        qubits: qubits to show, such as 0-20 or 3,7-9; without it all.
        picture: .png, .svg or .pdf file to draw the coupling map into, coloured by error.
    """
    from qhw_diffusion.devices import Calibration, Device, calibration_text, draw_calibration, parse_qubits

    calibration = Calibration.of(Device.load(device))
    chosen = None if qubits is None else parse_qubits(qubits, calibration.device)
    if picture is not None:
        draw_calibration(calibration, picture, chosen)
    print(calibration_text(calibration, chosen))
    return 0


def calibration_diff(before: Positional[str], after: Positional[str], *, top: int = 10) -> int:
    """Compare a device's calibrations of two dates.

    Args:
        before: snapshot file, or name of a fake device.
        after: snapshot file of the same device later.
        top: number of the largest changes to print.
    """
    from qhw_diffusion.devices import Device, Drift, drift_text

    print(drift_text(Drift.between(Device.load(before), Device.load(after)), top))
    return 0


def calibration_best_qubits(device: Positional[str], *, circuit: Path, top: int = 5, seeds: int = 5) -> int:
    """Rank the places for a circuit on a device by predicted error.

    Args:
        device: snapshot file, or name of a fake device.
        circuit: logical circuit, a .qpy file (see circuits/).
        top: number of placements to print.
        seeds: number of transpilations to start from.
    """
    from qhw_diffusion.circuits import load_circuit
    from qhw_diffusion.devices import Device, layouts_text, rank_layouts

    print(layouts_text(rank_layouts(Device.load(device), load_circuit(circuit), top=top, seeds=seeds)))
    return 0


def version() -> int:
    """Print the versions of the package and of what results depend on."""
    from qhw_diffusion.runs import package_versions

    print(f"qhw-diffusion {qhw_diffusion.__version__}")
    print("\n".join(f"{name} {number}" for name, number in package_versions().items()))
    return 0
