"""Is a denoiser better for updates on a device whose calibration has changed?"""
