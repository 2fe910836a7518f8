"""Per-sample gradients: statistics, the LM head in closed form, recording, the self-check."""
