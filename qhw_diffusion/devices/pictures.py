"""The coupling map as a picture: qubits coloured by readout error, couplings by the error of their gate."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhw_diffusion.devices.calibration import Calibration
from qhw_diffusion.devices.device import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.terminal import os_error_text

ENDINGS = (".png", ".svg", ".pdf")
_BROKEN = "#b0b0b0"


def draw_calibration(calibration: Calibration, path: str | Path, qubits: Collection[int] | None = None) -> Path:
    """Draw the device (or only `qubits`) into a PNG, SVG or PDF file; log colour scales, gates out of use dashed grey.

    Raises:
        InvalidInputError: another file ending, or a folder that cannot be written to.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise InvalidInputError(f"picture {str(path)!r}: the name must end in {', '.join(ENDINGS)}")
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    shown = sorted(range(len(calibration.qubits)) if qubits is None else qubits)
    places = qubit_places(calibration.device)[shown]
    places = places - places.min(axis=0)
    where = dict(zip(shown, places, strict=True))
    couplings = [row for row in calibration.couplings if set(row.pair) <= set(shown)]
    used = [row for row in couplings if row.in_use]
    width, height = places.max(axis=0) + 1
    figure = Figure(
        figsize=(min(max(0.62 * width + 2.6, 5.5), 16), min(max(0.62 * height + 1.2, 3.4), 14)), layout="constrained"
    )
    axes = figure.add_subplot()
    broken = [[where[a], where[b]] for row in couplings if not row.in_use for a, b in [row.pair]]
    axes.add_collection(LineCollection(broken, colors=_BROKEN, linestyles="dashed", linewidths=2, zorder=1))
    bars: list[tuple[Any, str]] = []
    if used:
        scale = _scale([row.error for row in used])
        lines = LineCollection(
            [[where[a], where[b]] for a, b in (row.pair for row in used)], linewidths=5, cmap="viridis_r", norm=scale
        )
        lines.set_array(np.array([row.error for row in used]))
        axes.add_collection(lines)
        bars.append((lines, f"two-qubit gate error ({', '.join(sorted({row.gate for row in used}))})"))
    errors = [calibration.qubits[qubit].readout_error for qubit in shown]
    dots = ScalarMappable(norm=_scale(errors), cmap="magma_r")
    colours = dots.to_rgba(np.clip(errors, *dots.get_clim()))
    axes.scatter(places[:, 0], places[:, 1], s=210, c=colours, edgecolors="black", linewidths=0.6, zorder=2)
    for qubit, place, colour in zip(shown, places, colours, strict=True):
        dark = float(np.dot(colour[:3], (0.299, 0.587, 0.114))) < 0.5
        axes.annotate(str(qubit), place, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
    bars.append((dots, "readout error"))
    for mappable, label in bars:
        figure.colorbar(mappable, ax=axes, label=label, fraction=0.03, pad=0.01)
    device = calibration.device
    kind = f" ({calibration.processor})" if calibration.processor else ""
    title = f"{device.name}{kind}, calibrated {str(device.date)[:10]}"
    axes.set_title(title + ("; dashed: gates out of use" if broken else ""), fontsize=11)
    axes.set_aspect("equal")
    axes.set_xlim(-0.7, width - 0.3)
    axes.set_ylim(height - 0.3, -0.7)  # the first row on top, as IBM draws it
    axes.set_axis_off()
    _save(figure, path)
    return path


def qubit_places(device: Device) -> NDArray[np.float64]:
    """``[n_qubits, 2]`` places to draw at, about one apart: the provider's, else from distances along the couplings."""
    if device.coordinates is not None:
        return np.array(device.coordinates, dtype=float)
    import rustworkx

    n = device.n_qubits or 0
    graph = rustworkx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(n))
    graph.add_edges_from_no_data(device.coupling_map)
    distances = np.array(rustworkx.graph_distance_matrix(graph, null_value=n))
    # classical multidimensional scaling: the two leading axes of the doubly centred squared distances
    centring = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-0.5 * centring @ distances**2 @ centring)
    lengths = np.sqrt(np.maximum(values[-2:][::-1], 0.0))
    places = np.zeros((n, 2))
    places[:, : lengths.size] = vectors[:, -2:][:, ::-1] * lengths
    # The projection may fold two qubits onto each other; stress majorization (SMACOF) draws them apart.
    for _ in range(300 if n > 1 else 0):
        apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
        pull = -distances / np.maximum(apart, 1e-6)
        np.fill_diagonal(pull, 0.0)
        np.fill_diagonal(pull, -pull.sum(axis=1))
        places = pull @ places / n
    return places


def _scale(errors: list[float]) -> Any:
    from matplotlib.colors import LogNorm

    positive = [error for error in errors if error > 0] or [1e-3]
    low, high = min(positive), max(positive)
    return LogNorm(low, high if high > low else 1.01 * low)


def _save(figure: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
        try:
            figure.savefig(temporary, dpi=130, bbox_inches="tight")
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise InvalidInputError(f"picture {str(path)!r} cannot be written: {os_error_text(error)}") from error
