"""Tests use no hub, and a cache of their own."""

import atexit
import os
import shutil
import tempfile

from hypothesis import settings

# Never the user's own key.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="gradsift-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The models are tiny: more threads only wait for each other, and the workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton's kernels run on the CPU, where Triton is installed; it must know before it is imported.
os.environ["TRITON_INTERPRET"] = "1"

# The first example of a test may load a library; a time limit would make the tests flaky.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# A captured run and a comparison, made once for each worker; after the environment is set.
from comparing import finished, fresh_run, log, world  # ruff: ignore[module-import-not-at-top-of-file]
from interrupting import uninterrupted  # ruff: ignore[module-import-not-at-top-of-file]

__all__ = ["finished", "fresh_run", "log", "uninterrupted", "world"]
