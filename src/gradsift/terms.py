"""The names that every room of gradsift uses, and nothing else."""

LAYERS = ("embedding", "lm_head")
STATISTICS = ("max", "min", "mean", "mean_abs", "std", "l2_norm")
