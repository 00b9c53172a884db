"""A drawing of a circuit: the same circuit gives the same bytes with the same versions of Qiskit and matplotlib."""

from __future__ import annotations

import io

from qiskit.circuit import QuantumCircuit

from qhw_diffusion.errors import InvalidInputError

_FOLD = 24  # gates side by side before the drawing goes on below


def draw_svg(circuit: QuantumCircuit) -> str:
    """The circuit as SVG text, without date, letters as outlines (no font needed to see them).

    Raises:
        InvalidInputError: not a circuit.
    """
    if not isinstance(circuit, QuantumCircuit):
        raise InvalidInputError(f"circuit must be a qiskit QuantumCircuit, not {type(circuit).__name__}")
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # Without a salt matplotlib names clip paths at random, and a date would change at every run.
    with matplotlib.rc_context({"svg.hashsalt": "qhw-diffusion", "svg.fonttype": "path"}):
        figure = Figure()
        FigureCanvasSVG(figure)  # a canvas of its own: no display and no global state of pyplot
        axes = figure.add_subplot()
        circuit.draw("mpl", ax=axes, fold=_FOLD, style="bw", scale=0.6)
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
