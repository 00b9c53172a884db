"""Quantum circuits inside diffusion models: trained under device noise, evaluated on IBM hardware.

Everything public is loaded when first used, so that `import qhw_diffusion` stays fast.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if sys.platform == "win32":
    raise ImportError(
        "qhw-diffusion runs on Linux and macOS: the ledger that keeps paid results locks files as Windows cannot. On "
        "Windows use it within WSL 2 (https://learn.microsoft.com/windows/wsl)"
    )

# name -> (module, attribute); attribute None means the module itself
_PUBLIC: dict[str, tuple[str, str | None]] = {
    "Device": ("qhw_diffusion.devices", "Device"),
    "compile_circuit": ("qhw_diffusion.execution", "compile_circuit"),
    "CompiledCircuit": ("qhw_diffusion.execution", "CompiledCircuit"),
    "QuantumLayer": ("qhw_diffusion.execution", "QuantumLayer"),
    "Ideal": ("qhw_diffusion.execution", "Ideal"),
    "Noisy": ("qhw_diffusion.execution", "Noisy"),
    "Shots": ("qhw_diffusion.execution", "Shots"),
    "Primitive": ("qhw_diffusion.execution", "Primitive"),
    "Hardware": ("qhw_diffusion.execution", "Hardware"),
    "Mitigated": ("qhw_diffusion.mitigation", "Mitigated"),
    "ParameterShift": ("qhw_diffusion.execution", "ParameterShift"),
    "SPSA": ("qhw_diffusion.execution", "SPSA"),
    "Surrogate": ("qhw_diffusion.execution", "Surrogate"),
    "QhwError": ("qhw_diffusion.errors", "QhwError"),
    "circuits": ("qhw_diffusion.circuits", None),
    "denoising": ("qhw_diffusion.denoising", None),
    "guidance": ("qhw_diffusion.guidance", None),
    "hardware": ("qhw_diffusion.hardware", None),
    "mitigation": ("qhw_diffusion.mitigation", None),
    "diffusion": ("qhw_diffusion.diffusion", None),
    "studies": ("qhw_diffusion.studies", None),
}

__all__ = [
    "SPSA",
    "CompiledCircuit",
    "Device",
    "Hardware",
    "Ideal",
    "Mitigated",
    "Noisy",
    "ParameterShift",
    "Primitive",
    "QhwError",
    "QuantumLayer",
    "Shots",
    "Surrogate",
    "__version__",
    "circuits",
    "compile_circuit",
    "denoising",
    "diffusion",
    "guidance",
    "hardware",
    "mitigation",
    "studies",
]

if TYPE_CHECKING:
    from qhw_diffusion import circuits, denoising, diffusion, guidance, hardware, mitigation, studies
    from qhw_diffusion.devices import Device
    from qhw_diffusion.errors import QhwError
    from qhw_diffusion.execution import (
        SPSA,
        CompiledCircuit,
        Hardware,
        Ideal,
        Noisy,
        ParameterShift,
        Primitive,
        QuantumLayer,
        Shots,
        Surrogate,
        compile_circuit,
    )
    from qhw_diffusion.mitigation import Mitigated


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'qhw_diffusion' has no attribute {name!r}")
    module_name, attribute = _PUBLIC[name]
    module = importlib.import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
