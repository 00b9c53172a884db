"""The snapshots in `calibration/`: which devices, their pictures, and the folder's table.

``python -m qhw_diffusion.devices.shipped calibration`` writes all of it anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qhw_diffusion.devices.calibration import Calibration
from qhw_diffusion.devices.device import Device, take_snapshot
from qhw_diffusion.devices.pictures import draw_calibration
from qhw_diffusion.devices.tables import overview_markdown
from qhw_diffusion.errors import MissingDataError

# two Heron processors (revisions 2 and 1) and an Eagle
SHIPPED = ("fake_marrakesh", "fake_torino", "fake_brisbane")
_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"


def shipped_files(folder: Path) -> list[Path]:
    """The snapshot files of `folder`, in the order of `SHIPPED`."""
    return [next(iter(sorted(folder.glob(f"{name}-*.json.gz"))), folder / f"{name}-missing") for name in SHIPPED]


def with_table(readme: str, folder: Path) -> str:
    """The README's text with the table of the snapshots in `folder` between its two marks."""
    rows = [(path.name, Calibration.of(Device.load(path))) for path in shipped_files(folder)]
    head, rest = readme.split(_BEGIN)
    tail = rest.split(_END)[1]
    return f"{head}{_BEGIN}\n{overview_markdown(rows)}\n{_END}{tail}"


def write_shipped(folder: Path) -> list[Path]:
    """Take the snapshots anew, draw them, and refresh the table in ``README.md``.

    Raises:
        MissingDataError: a folder without a README with the two marks of the table; nothing is written then.
    """
    readme = folder / "README.md"
    if not readme.is_file() or not {_BEGIN, _END} <= set(readme.read_text(encoding="utf-8").splitlines()):
        raise MissingDataError(
            f"{readme} is missing, or the lines {_BEGIN} and {_END} in it: give the folder of the shipped calibrations"
        )
    for name in SHIPPED:
        device = Device.load(name)
        stem = f"{name}-{str(device.date)[:10]}"
        take_snapshot(name, folder / f"{stem}.json.gz", overwrite=True)
        draw_calibration(Calibration.of(device), folder / f"{stem}.png")
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), folder), encoding="utf-8")
    return [*shipped_files(folder), *sorted(folder.glob("*.png")), readme]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Take the shipped calibrations anew, and draw them.")
    parser.add_argument("folder", type=Path, help="folder of the calibrations, with its README.md")
    try:
        print("\n".join(map(str, write_shipped(parser.parse_args().folder))))
    except MissingDataError as error:
        sys.exit(f"error: {error}")
