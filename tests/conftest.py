"""Tests use no hub, and a cache of their own."""

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The first example of a test may load a library; a time limit would make the tests flaky.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
