"""The names that every module of gradsift uses, and nothing else."""

from typing import Literal

EMBEDDING = "embedding"
LM_HEAD = "lm_head"
LAYERS = (EMBEDDING, LM_HEAD)
# Numbers of a gradient sketch.
SKETCH_SIZE = 1024
# Methods of recording in a capture and in a loop that is not ours, from the cheapest to the one
# that makes the fewest assumptions.
CaptureMethod = Literal["fused", "fused-intercepted", "hooked", "intercepted"]
LoopMethod = Literal["hidden", "hidden-intercepted", "hooked", "intercepted"]
RecordingMethod = Literal[CaptureMethod, LoopMethod]
STATISTICS = ("max", "min", "mean", "mean_abs", "std", "l2_norm")
# Of a token without a loss, as in transformers and PyTorch.
IGNORED_LABEL = -100

# In the folder of a pool in shards: how many there are, and of what.
SHARDS = "shards.json"
