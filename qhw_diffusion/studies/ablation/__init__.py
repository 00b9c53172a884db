"""What the parts of the quantum policy contribute: `qhw study ablation`."""
