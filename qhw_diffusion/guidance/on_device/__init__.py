"""A trained policy on a device: rollouts, fine-tuning, distillation, by way of the ledger."""
