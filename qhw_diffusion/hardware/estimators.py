"""Which Estimator primitives give right values for circuits that reset or measure qubits in mid-circuit."""

from __future__ import annotations

from typing import Any

from qiskit import QuantumCircuit
from qiskit.primitives import BackendEstimatorV2

from qhw_diffusion.errors import UnsupportedCircuitError


def check_runs(estimator: Any, circuit: QuantumCircuit) -> None:
    """Raise UnsupportedCircuitError for a circuit with resets or measurements that the estimator does not average over.

    Qiskit's StatevectorEstimator follows one state and draws the outcome of a reset once for all its values; Aer's
    own estimator averages over a number of runs that has nothing to do with the precision, unless it holds density
    matrices. Estimators that run every shot from the start take both; the runtime client's take resets. Others are not
    known to, and are refused.
    """
    found = sorted({"measure", "reset"} & set(circuit.count_ops()))
    module = type(estimator).__module__
    by_shots = isinstance(estimator, BackendEstimatorV2)
    mixed = module.startswith("qiskit_aer") and estimator._backend.options.get("method") == "density_matrix"
    client = module.startswith("qiskit_ibm_runtime") and "measure" not in found
    if found and not (by_shots or mixed or client):
        raise UnsupportedCircuitError(
            f"{module.split('.')[0]}'s {type(estimator).__name__} gives no right value for a circuit with "
            f"{' and '.join(found)} in mid-circuit; use Primitive(aer_estimator(compiled), reduced=True), or engine "
            "'ideal' or 'noisy'"
        )
