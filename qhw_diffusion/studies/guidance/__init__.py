"""Policies of classifier-free guidance against constants and tuned schedules, on the same seeds."""
