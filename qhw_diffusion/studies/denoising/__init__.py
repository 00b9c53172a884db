"""Quantum denoisers against controls: ideal, with the noise of a device, and with finite shots."""
