"""Mitigation strategies compared on devices and shots: bias, scatter, cost, guidance, images, the denoiser."""
