"""Words of the mitigation study: its strategies by name, devices, numbers."""

from __future__ import annotations

from qhw_diffusion.mitigation import NOISE_DATA, Need, Strategy, strategies_of

# Texts of strategies (`mitigation.strategies_of`), from the engine outwards; and two without any, the second one on a
# circuit that is compiled with a schedule
NONE, SCHEDULED = "none", "scheduled"
READOUT, READOUT_ZNE = "readout:measured", "readout:measured+zne:linear:1,3"
DEVICES = {"fake_brisbane": "Eagle", "fake_marrakesh": "Heron", "fake_nighthawk": "Nighthawk"}


def strategies_in(name: str) -> list[Strategy]:
    """The strategies of a name, made anew; none of "none" and "scheduled"."""
    return [] if name in (NONE, SCHEDULED) else strategies_of(name)


def is_scheduled(name: str) -> bool:
    """Whether the circuit is compiled with a schedule for this strategy."""
    return name == SCHEDULED or any(Need.SCHEDULE in strategy.needs for strategy in strategies_in(name))


def knows_the_noise(name: str) -> bool:
    """Whether it is told the simulated noise exactly, as no calibration of a device knows the device."""
    return any(strategy.needs & NOISE_DATA for strategy in strategies_in(name))


def label_of(name: str) -> str:
    """What tables call a strategy."""
    label = " + ".join(strategy.label for strategy in strategies_in(name)) or NONE
    return f"{label}, scheduled" if is_scheduled(name) else label


def device_text(device: str) -> str:
    """Its name, and its family where known."""
    return f"{device} ({DEVICES[device]})" if device in DEVICES else device


def numbers_text(numbers: tuple[int, ...]) -> str:
    """``"1,024, 4,096"``."""
    return ", ".join(f"{n:,}" for n in numbers)
