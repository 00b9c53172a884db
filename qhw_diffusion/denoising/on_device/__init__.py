"""A trained denoiser on a device: one circuit an image by an Estimator, by way of the ledger."""
