"""What every model of a comparison is asked: held-out rows, general tasks, general text."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsift.config import CaptureConfig
from gradsift.data.pool import Pool
from gradsift.data.tokenization import Instance, build_instances
from gradsift.errors import GradsiftError
from gradsift.evaluation.benchmarks import PROBE, TaskSource, load_tasks, questions, score_tasks
from gradsift.evaluation.generation import generate
from gradsift.evaluation.losses import response_losses, window_losses, windows_of
from gradsift.evaluation.text_metrics import Synonyms, find_synonyms, score_texts
from gradsift.stages.listener import SILENT, Listener
from gradsift.terms import IGNORED_LABEL

MOST_NEW_TOKENS = 256
# Raised when the same model would be given other scores by a newer gradsift.
SUITE_VERSION = 1
DIGITS = 6


@dataclass(frozen=True)
class EvaluationConfig:
    """What is asked, besides the held-out rows.

    Attributes:
        general: Names of lm-eval tasks, task files (.yaml), text files (.txt), or "probe".
        limit: Items of each task, the first ones; None for all.
        max_new_tokens: Of an answer; None for the longest reference, at most 256.
        trust_code: Whether code that a task file names may run.
    """

    general: tuple[str, ...] = (PROBE,)
    limit: int | None = None
    max_new_tokens: int | None = None
    trust_code: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that ask nothing.

        Raises:
            ValueError: For one below 1.
        """
        for option, value in (("limit", self.limit), ("max-new-tokens", self.max_new_tokens)):
            if value is not None and value < 1:
                raise GradsiftError(f"--{option} is {value}, expected at least 1.")


@dataclass(frozen=True)
class EvaluationSuite:
    """Everything that is asked, ready.

    Attributes:
        instances: Held-out rows.
        sources: Where each comes from.
        asked: Positions of those with a prompt and a reference, which are answered.
        prompts: Their tokens.
        references: What was wanted.
        max_new_tokens: Of an answer.
        tasks: lm-eval's.
        limit: Items of each.
        windows: Of general text, by file name.
        synonyms: For METEOR.
        n_tokens: To be read for all of it, about; an answer's tokens, written one by one, count
            twice.
        identity: What determines a model's scores.
    """

    instances: Sequence[Instance]
    sources: Sequence[str]
    asked: Sequence[int]
    prompts: Sequence[list[int]]
    references: Sequence[str]
    max_new_tokens: int
    tasks: dict[str, Any] | None
    limit: int | None
    windows: dict[str, list[list[int]]]
    synonyms: Synonyms
    n_tokens: int = 0
    identity: dict[str, object] = field(default_factory=dict)


def make_suite(
    test: Pool,
    tokenizer: PreTrainedTokenizerBase,
    capture: CaptureConfig,
    settings: EvaluationConfig,
    listener: Listener = SILENT,
) -> EvaluationSuite:
    """Prepare what is asked.

    Args:
        test: Held-out rows.
        tokenizer: Of the model.
        capture: How rows are truncated.
        settings: What else is asked.
        listener: Is told what happens.

    Returns:
        The exam.

    Raises:
        ValueError: If no row can be used, or a task or text cannot be read.
    """
    built = build_instances(
        [(row.instance_id, row.example) for row in test.rows if row.example is not None],
        tokenizer,
        max_length=capture.max_length,
        truncation=capture.truncation,
    )
    if not built.items:
        raise GradsiftError(
            f"{test.source.name}: none of its {len(test.rows)} rows can be tested on."
        )
    left_out = len(test.rows) - len(built.items)
    if left_out:
        listener.note(
            f"{test.source.name}: {left_out} of {len(test.rows)} rows cannot be tested on"
        )
    sources = {row.instance_id: row.source or "all" for row in test.rows}
    split = [_question(item, tokenizer) for item in built.items]
    asked = [i for i, (prompt, reference) in enumerate(split) if len(prompt) > 1 and reference]
    if len(asked) < len(split):
        listener.note(f"{len(split) - len(asked)} test rows have no prompt or no text: only a loss")
    references = [split[i][1] for i in asked]
    longest = max((_n_tokens(text, tokenizer) for text in references), default=1)
    names = [name for name in settings.general if not name.endswith((".yaml", ".yml", ".txt"))]
    files = [Path(name) for name in settings.general if name.endswith((".yaml", ".yml"))]
    texts = [Path(name) for name in settings.general if name.endswith(".txt")]
    if len({path.stem for path in texts}) < len(texts):
        raise GradsiftError("`general`: two text files have the same name; give each its own.")
    source = TaskSource(tuple(names), tuple(files))
    exam = EvaluationSuite(
        instances=built.items,
        sources=[sources[item.instance_id] for item in built.items],
        asked=asked,
        prompts=[split[i][0] for i in asked],
        references=references,
        max_new_tokens=settings.max_new_tokens or min(MOST_NEW_TOKENS, longest + 1),
        tasks=load_tasks(source, trust_code=settings.trust_code) if names or files else None,
        limit=settings.limit,
        windows={path.stem: _windows(path, tokenizer) for path in texts},
        synonyms=find_synonyms(listener.note),
    )
    return _identified(exam, tokenizer)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    exam: EvaluationSuite,
    listener: Listener = SILENT,
) -> tuple[dict[str, Any], list[str]]:
    """Ask a model everything.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        exam: What is asked.
        listener: Is told how far it is, in rows and tasks.

    Returns:
        Scores item by item, and the answers to the held-out prompts.
    """
    started = time.perf_counter()
    losses = response_losses(model, exam.instances)
    n_prompts, longest = len(exam.prompts), exam.max_new_tokens

    def tell(n: int) -> None:
        listener.progress(n, n_prompts, n * longest, n_prompts * longest)

    answers = []
    if exam.prompts:
        answers = generate(model, tokenizer, exam.prompts, max_new_tokens=longest, on_progress=tell)
    scores: dict[str, Any] = {
        "rows": {"source": list(exam.sources), "loss": _rounded(losses)},
        "tasks": {},
        "texts": {},
    }
    if answers:
        found = score_texts(answers, exam.references, exam.synonyms)
        scores["answers"] = {
            "source": [exam.sources[i] for i in exam.asked],
            "bleu": found.bleu,
            "chrf": found.chrf,
            "meteor": _rounded(found.meteor),
            "rouge_l": _rounded(found.rouge_l),
            "signatures": found.signatures,
        }
    if exam.tasks is not None:
        for name, task in score_tasks(model, tokenizer, exam.tasks, limit=exam.limit).items():
            scores["tasks"][name] = {**asdict(task), "scores": _rounded(task.scores)}
    for name, windows in exam.windows.items():
        scores["texts"][name] = {"loss": _rounded(window_losses(model, windows))}
    scores["seconds"] = time.perf_counter() - started
    return scores, answers


def overlap_with(pool: Pool, test: Pool) -> int:
    """Count the test rows that say word for word what a row of the pool says.

    Args:
        pool: What is trained on.
        test: Held-out rows.

    Returns:
        Their number.
    """
    seen = {row.content_hash for row in pool.rows if row.content_hash is not None}
    return sum(row.content_hash in seen for row in test.rows)


def _question(item: Instance, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], str]:
    # What is asked last, and what was answered.
    labelled = [i for i, label in enumerate(item.labels) if label != IGNORED_LABEL]
    start = labelled[-1]
    while start > 0 and item.labels[start - 1] != IGNORED_LABEL:
        start -= 1
    text = tokenizer.decode(item.input_ids[start : labelled[-1] + 1], skip_special_tokens=True)
    return item.input_ids[:start], text.strip()


def _n_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _windows(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GradsiftError(f"`general` {path}: cannot be read ({error}).") from None
    return windows_of(text, tokenizer)


def _identified(exam: EvaluationSuite, tokenizer: PreTrainedTokenizerBase) -> EvaluationSuite:
    digest = hashlib.sha256()
    n_tokens = sum(len(item.input_ids) for item in exam.instances)
    n_tokens += sum(len(prompt) + 2 * exam.max_new_tokens for prompt in exam.prompts)
    n_tokens += sum(len(window) for windows in exam.windows.values() for window in windows)
    for item in exam.instances:
        digest.update(json.dumps([item.input_ids, item.labels]).encode())
    for name, windows in sorted(exam.windows.items()):
        digest.update(json.dumps([name, windows]).encode())
    tasks = {} if exam.tasks is None else exam.tasks["tasks"]
    for name, task in sorted(tasks.items()):
        asked = json.dumps([name, *questions(task, exam.limit)], default=str)
        digest.update(asked.encode())
        n_tokens += (1 + (task.get_config("num_fewshot") or 0)) * _n_tokens(asked, tokenizer)
    identity = {
        "version": SUITE_VERSION,
        "content": f"sha256 {digest.hexdigest()[:16]}",
        "tasks": sorted(tasks),
        "limit": exam.limit,
        "max_new_tokens": exam.max_new_tokens,
        "synonyms": exam.synonyms.name,
    }
    return replace(exam, n_tokens=n_tokens, identity=identity)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), DIGITS) for value in values]
