"""A small general probe of our own, for where no benchmark is at hand.

Multiple choice: everyday facts, science, arithmetic, grammar and common sense, written for this
project. It tells a model that forgot a lot from one that did not; it is no benchmark to quote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PROBE = "probe"
PROBE_FILE = Path(__file__).with_name("probe.jsonl")


def probe_task() -> dict[str, Any]:
    """Return the probe as a task of lm-eval's.

    Returns:
        Its configuration; each item has a context, choices and the index of the right one.
    """
    return {
        "task": PROBE,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(PROBE_FILE)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
