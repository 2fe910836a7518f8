"""The names that every module of gradsift uses, and nothing else."""

EMBEDDING = "embedding"
LM_HEAD = "lm_head"
LAYERS = (EMBEDDING, LM_HEAD)
# Numbers of a gradient sketch.
SKETCH_SIZE = 1024
STATISTICS = ("max", "min", "mean", "mean_abs", "std", "l2_norm")
# Of a token without a loss, as in transformers and PyTorch.
IGNORED_LABEL = -100
