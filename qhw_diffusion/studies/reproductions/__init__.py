"""Published results of quantum diffusion models beside ours."""
