"""Jobs on real devices: what they cost, the ledger, and the only code that submits anything."""
