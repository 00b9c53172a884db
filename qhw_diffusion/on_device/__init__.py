"""Runs on a device, of whatever model: shots, caps, mitigation, ledger, receipts."""
