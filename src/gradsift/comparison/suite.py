"""What every model of a comparison is asked: held-out rows, general tasks, general text."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsift.config import EvaluationConfig
from gradsift.data.language import languages_of
from gradsift.data.pool import Pool
from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.evaluation.benchmarks import SANITY, load_tasks, questions, score_tasks
from gradsift.evaluation.generation import generate
from gradsift.evaluation.losses import response_losses, window_losses, windows_of
from gradsift.evaluation.text_metrics import (
    Synonyms,
    find_synonyms,
    measures_meteor,
    score_texts,
    signatures_of,
)
from gradsift.files import require_plain
from gradsift.progress import Progress, no_progress, stage
from gradsift.run_folder import Run
from gradsift.seals import short_sha256
from gradsift.terms import IGNORED_LABEL
from gradsift.wording import one_line

MOST_NEW_TOKENS = 256
# Raised when the same model would be given other scores by a newer gradsift; but not for how its
# answers are scored, which their signatures say: these are scored again, without the model.
SUITE_VERSION = 1
DIGITS = 6
TASK_FILES = (".yaml", ".yml")
# What the sanity benchmark was called; stays in identities, so that finished work is found again.
SANITY_BEFORE = "probe"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSuite:
    """Everything that is asked, ready.

    Attributes:
        instances: Held-out rows.
        sources: Where each comes from.
        answered: Positions of those with a prompt and a reference.
        prompts: Their tokens.
        references: What was to be answered.
        tasks: lm-eval's.
        task_texts: What each task asks, as JSON, by its name in identities.
        limit: Items of each task.
        windows: Of general text, by file name.
        synonyms: For METEOR.
    """

    tokenizer: PreTrainedTokenizerBase
    instances: Sequence[Instance]
    sources: Sequence[str]
    answered: Sequence[int]
    prompts: Sequence[list[int]]
    references: Sequence[str]
    max_new_tokens: int
    tasks: dict[str, Any] | None
    task_texts: dict[str, str]
    limit: int | None
    windows: dict[str, list[list[int]]]
    synonyms: Synonyms

    @cached_property
    def identity(self) -> dict[str, object]:
        """What determines a model's scores."""
        rows = (json.dumps([item.input_ids, item.labels]) for item in self.instances)
        texts = (json.dumps([name, windows]) for name, windows in sorted(self.windows.items()))
        tasks = (text for _, text in sorted(self.task_texts.items()))
        return {
            "version": SUITE_VERSION,
            "content": f"sha256 {short_sha256(chain(rows, texts, tasks))}",
            "tasks": sorted(self.task_texts),
            "limit": self.limit,
            "max_new_tokens": self.max_new_tokens,
            "synonyms": self.synonyms.name,
        }

    @cached_property
    def n_tokens(self) -> int:
        """To be read for all of it, about; an answer's, written one by one, count twice."""
        n_tokens = sum(len(item.input_ids) for item in self.instances)
        n_tokens += sum(len(prompt) + 2 * self.max_new_tokens for prompt in self.prompts)
        n_tokens += sum(len(window) for windows in self.windows.values() for window in windows)
        for text in self.task_texts.values():
            n_shots = json.loads(text)[1] or 0
            n_tokens += (1 + n_shots) * _n_tokens(text, self.tokenizer)
        return n_tokens

    def evaluate(
        self, model: PreTrainedModel, progress: Progress = no_progress
    ) -> tuple[dict[str, Any], list[str]]:
        """Return scores item by item, and the answers to the held-out prompts."""
        started = time.perf_counter()
        scores: dict[str, Any] = {
            "rows": {
                "source": list(self.sources),
                "loss": _rounded(response_losses(model, self.instances)),
            }
        }
        answers = []
        if self.prompts:
            answers = generate(
                model,
                self.tokenizer,
                self.prompts,
                max_new_tokens=self.max_new_tokens,
                progress=stage(progress, "answered"),
            )
        if answers:
            scores["answers"] = self.scores_of(answers)
        tasks = {}
        if self.tasks is not None:
            tasks = score_tasks(model, self.tokenizer, self.tasks, limit=self.limit)
        scores["tasks"] = {
            name: {**asdict(task), "scores": _rounded(task.scores)} for name, task in tasks.items()
        }
        scores["texts"] = {
            name: {"loss": _rounded(window_losses(model, windows))}
            for name, windows in self.windows.items()
        }
        scores["seconds"] = time.perf_counter() - started
        return scores, answers

    def scores_of(self, answers: Sequence[str]) -> dict[str, Any]:
        """Score answers to the held-out prompts, item by item; null is not measured."""
        texts = score_texts(answers, self.references, self.synonyms)
        return {
            "source": [self.sources[i] for i in self.answered],
            "language": texts.languages,
            "bleu": texts.bleu,
            "chrf": texts.chrf,
            "meteor": [None if math.isnan(value) else value for value in _rounded(texts.meteor)],
            "rouge_l": _rounded(texts.rouge_l),
            "signatures": texts.signatures,
        }

    @cached_property
    def languages(self) -> list[str]:
        """Of each reference."""
        return languages_of(self.references)

    @cached_property
    def signatures(self) -> dict[str, str]:
        """How answers are scored here and now, by metric."""
        return signatures_of(self.references, self.synonyms)

    def would_score_alike(self, scores: Mapping[str, Any]) -> bool:
        """Return whether saved scores of answers are what scoring them again would give."""
        answers = scores.get("answers")
        if answers is None:
            return True
        same_languages = answers.get("language", self.languages) == self.languages
        return same_languages and answers["signatures"] == self.signatures

    def with_names_of_today(self, scores: dict[str, Any]) -> dict[str, Any]:
        """Return scores that an earlier gradsift may have saved, as they are saved now."""
        if "answers" in scores:
            scores = {**scores, "answers": {**scores["answers"], "language": self.languages}}
        tasks = scores["tasks"]
        if self.tasks is None or SANITY not in self.tasks["tasks"] or SANITY in tasks:
            return scores
        named = {SANITY if name == SANITY_BEFORE else name: tasks[name] for name in tasks}
        return {**scores, "tasks": named}


def make_suite(test: Pool, run: Run, config: EvaluationConfig) -> EvaluationSuite:
    """Prepare what is asked, from held-out rows that are truncated as those of the run are.

    Raises:
        GradsiftError: If no row can be used, or a task or text cannot be read.
    """
    tokenizer = run.tokenizer
    instances = _test_instances(test, run)
    sources = {row.instance_id: row.source or "all" for row in test.rows}
    pairs = [_last_question(item, tokenizer) for item in instances]
    answered = [i for i, (prompt, reference) in enumerate(pairs) if len(prompt) > 1 and reference]
    if len(answered) < len(pairs):
        n_left = len(pairs) - len(answered)
        logger.info(f"{n_left} test rows have no prompt or no text: only a loss")
    references = [pairs[i][1] for i in answered]
    longest = max((_n_tokens(text, tokenizer) for text in references), default=1)
    text_files = [Path(name) for name in config.general if name.endswith(".txt")]
    if len({path.stem for path in text_files}) < len(text_files):
        raise GradsiftError("`general`: two text files have the same name; give each its own.")
    tasks = _load_tasks(config)
    return EvaluationSuite(
        tokenizer=tokenizer,
        instances=instances,
        sources=[sources[item.instance_id] for item in instances],
        answered=answered,
        prompts=[pairs[i][0] for i in answered],
        references=references,
        max_new_tokens=config.max_new_tokens or min(MOST_NEW_TOKENS, longest + 1),
        tasks=tasks,
        task_texts=_task_texts(tasks, config),
        limit=config.limit,
        windows={path.stem: _windows(path, tokenizer) for path in text_files},
        synonyms=find_synonyms(needed=measures_meteor(languages_of(references))),
    )


def _test_instances(test: Pool, run: Run) -> Sequence[Instance]:
    built = run.tokenized(test)
    n_rows, n_left = len(test.rows), len(test.rows) - len(built.items)
    if not built.items:
        raise GradsiftError(f"{test.source.name}: none of its {n_rows} rows can be tested on.")
    if n_left:
        logger.info(f"{test.source.name}: {n_left} of {n_rows} rows cannot be tested on")
    return built.items


def _last_question(item: Instance, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], str]:
    # What is asked last, and what was answered.
    labelled = [i for i, label in enumerate(item.labels) if label != IGNORED_LABEL]
    start = labelled[-1]
    while start > 0 and item.labels[start - 1] != IGNORED_LABEL:
        start -= 1
    text = tokenizer.decode(item.input_ids[start : labelled[-1] + 1], skip_special_tokens=True)
    return item.input_ids[:start], text.strip()


def _n_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _load_tasks(config: EvaluationConfig) -> dict[str, Any] | None:
    files = [Path(name) for name in config.general if name.endswith(TASK_FILES)]
    names = [name for name in config.general if not name.endswith((*TASK_FILES, ".txt"))]
    if not names and not files:
        return None
    return load_tasks(names, files, trust_code=config.trust_remote_code)


def _task_texts(tasks: dict[str, Any] | None, config: EvaluationConfig) -> dict[str, str]:
    # Before any model is scored: lm-eval fills in settings then.
    texts = {}
    for name, task in ({} if tasks is None else tasks["tasks"]).items():
        is_sanity = name == SANITY and SANITY in config.general
        saved_name = SANITY_BEFORE if is_sanity else name
        texts[saved_name] = json.dumps([saved_name, *questions(task, config.limit)], default=str)
    return texts


def _windows(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    require_plain(path, f"`general` {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GradsiftError(f"`general` {path}: cannot be read ({one_line(error)}).") from None
    return windows_of(text, tokenizer)


def overlap_with(pool: Pool, test: Pool) -> int:
    """Count the test rows that say word for word what a row of the pool says."""
    seen = {row.content_hash for row in pool.rows if row.content_hash is not None}
    return sum(row.content_hash in seen for row in test.rows)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), DIGITS) for value in values]
