"""Answers of the client's estimators: fetched as text, decoded at any later time without asking anybody."""

from __future__ import annotations

import json
from functools import reduce
from typing import Any

import numpy as np
from qiskit.primitives import PrimitiveResult
from qiskit_ibm_runtime.decoders.defaults import DEFAULT_DECODERS
from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

from qhw_diffusion.errors import DamagedFileError
from qhw_diffusion.hardware.service import Measured


class RawText(ResultDecoder):
    """Leaves the service's text as it is."""

    @classmethod
    def decode(cls, data: Any) -> Any:
        return data


def decode(raw: str) -> list[Measured]:
    """What the stored text of a job says; no service is asked.

    Raises:
        DamagedFileError: the text is no result of either program.
    """
    try:
        program = "executor" if "schema_version" in json.loads(raw) else "estimator"
        result: Any = reduce(
            lambda value, decoder: decoder.decode(value) if decoder.is_applicable(value) else value,
            DEFAULT_DECODERS[program],
            raw,
        )
        if not isinstance(result, PrimitiveResult):
            raise TypeError(f"a {type(result).__name__}")
        measured = []
        for answer in result:
            shots = answer.metadata.get("shots", result.metadata.get("shots"))
            measured.append((np.asarray(answer.data.evs, float), np.asarray(answer.data.stds, float), int(shots or 0)))
        return measured
    except Exception as error:
        raise DamagedFileError(
            f"the answer is no result of the client's estimators ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]})"
        ) from error
