"""Quantum diffusion models: forward processes, reverse circuits, losses, training, sampling, reading images out."""
