"""What finite shots do to values, gradients, images, the denoiser and PPO."""
