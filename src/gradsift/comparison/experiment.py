"""Train and evaluate every training run; what was done once is not done again."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from gradsift.comparison.results import EvaluatedModel
from gradsift.comparison.suite import EvaluationSuite
from gradsift.comparison.training_runs import (
    TrainingRun,
    find_loadable,
    find_saved,
    load_saved,
    train_run,
)
from gradsift.config import ArmTrainingConfig
from gradsift.errors import GradsiftError
from gradsift.progress import Progress, no_progress
from gradsift.run_folder import Run
from gradsift.seals import write_json
from gradsift.training.cost import duration
from gradsift.training.finetune import FineTuned
from gradsift.training.model import load_model, on_best_device

SCORES = "scores.json"
ANSWERS = "answers.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """The training runs of a comparison, and how each is evaluated."""

    run: Run
    training_runs: Sequence[TrainingRun]
    suite: EvaluationSuite
    training: ArmTrainingConfig
    progress: Progress = no_progress

    def models(self) -> list[EvaluatedModel]:
        """Do what is not done yet; several processes on one run folder share the work."""
        results: dict[int, Mapping[str, Any]] = {}
        remaining, waits = list(range(len(self.training_runs))), False
        while remaining:
            busy = []
            for at in remaining:
                result = self.result_of(self.training_runs[at])
                if result is None:
                    to_do = [self.training_runs[i] for i in remaining if i not in results]
                    left = self._time_left(to_do, list(results.values()))
                    result = self._locked(at, left, waits=waits)
                if result is None:
                    busy.append(at)
                else:
                    results[at] = result
            if busy and not waits:
                logger.info(f"{len(busy)} arms are with another process: waiting for them")
            # What others do is waited for, and done here if they die.
            remaining, waits = busy, True
        return [
            EvaluatedModel(
                training_run.arm,
                training_run.index,
                len(training_run.instances),
                results[at]["training"],
                results[at]["scores"],
            )
            for at, training_run in enumerate(self.training_runs)
        ]

    def is_done(self, training_run: TrainingRun) -> bool:
        """Return whether this or an earlier session found its result."""
        return self._saved(training_run) is not None

    def result_of(self, training_run: TrainingRun) -> dict[str, Any] | None:
        """Return what was found in this session or an earlier one.

        Answers that were scored in another way than they would be now are scored again, and saved:
        scores under two tokenizers say nothing beside each other.
        """
        saved = self._saved(training_run)
        if saved is None:
            return None
        path, result = saved
        if not self.suite.would_score_alike(result["scores"]):
            answers = self._answers_beside(path)
            assert answers is not None
            logger.info(f"{path}: its answers are scored again, as they are scored now")
            scores = {**result["scores"], "answers": self.suite.scores_of(answers)}
            result = {**result, "scores": scores}
            write_json(path, result)
        return {**result, "scores": self.suite.with_names_of_today(result["scores"])}

    def _saved(self, training_run: TrainingRun) -> tuple[Path, dict[str, Any]] | None:
        wants_model = self.training.keep_models and training_run.settings is not None
        if wants_model and find_saved(training_run) is None:
            return None
        identity = json.loads(json.dumps(training_run.identity))
        for path in sorted(training_run.arms_folder.glob(f"*-{training_run.key}/{SCORES}")):
            result = _read_result(path)
            if result is None or result["identity"] != identity:
                continue
            alike = self.suite.would_score_alike(result["scores"])
            if alike or self._answers_beside(path) is not None:
                return path, result
            logger.warning(
                f"{path}: its answers were scored in another way than now, and {ANSWERS} beside it "
                "is not there or not whole; this model is made again"
            )
        return None

    def _answers_beside(self, path: Path) -> list[str] | None:
        """Read the answers to the held-out prompts, in their order, if all of them are there."""
        try:
            # Not splitlines: an answer may have other signs that end a line.
            text = path.with_name(ANSWERS).read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.split("\n") if line]
            found = [(line["reference"], str(line["answer"])) for line in lines]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        references, answers = [list(column) for column in zip(*found, strict=True)] or [[], []]
        return answers if references == list(self.suite.references) else None

    def tokens_per_second(self) -> float | None:
        """Return the speed of training that the capture's estimate found, if it found one."""
        estimate = self.run.store.manifest.about.get("estimate") or {}
        if not estimate.get("full_sft_seconds"):
            return None
        # It says what three epochs over the pool take, without recording.
        return 3 * estimate["n_tokens"] / estimate["full_sft_seconds"]

    def _time_left(self, to_do: Sequence[TrainingRun], results: Sequence[Mapping[str, Any]]) -> str:
        if not results:
            return ""
        evaluation = sum(result["scores"]["seconds"] for result in results) / len(results)
        trainings = [result["training"] for result in results if result["training"] is not None]
        speed = self.tokens_per_second()
        if trainings:
            n_tokens = sum(training["n_tokens"] for training in trainings)
            speed = n_tokens / sum(training["seconds"] for training in trainings)
        if not speed:
            return ""
        tokens = {training_run.key: tokens_to_train(training_run) for training_run in to_do}
        seconds = sum(tokens.values()) / speed + evaluation * len(tokens)
        return f"; about {duration(seconds)} left if this process does it all"

    def _locked(self, at: int, left: str, *, waits: bool) -> dict[str, Any] | None:
        training_run = self.training_runs[at]
        try:
            with training_run.lock().acquire(timeout=-1 if waits else 0):
                # Another process may have ended it meanwhile.
                result = self.result_of(training_run)
                if result is None:
                    number = f"{at + 1}/{len(self.training_runs)}"
                    n_rows = len(training_run.instances)
                    logger.info(f"{number} {training_run.title}: {n_rows} rows{left}")
                    result = self._train_and_evaluate(training_run)
                return result
        except Timeout:
            return None

    def _train_and_evaluate(self, training_run: TrainingRun) -> dict[str, Any]:
        if training_run.settings is None:
            model, training = load_model(self.run.model), None
        else:
            tuned = self._tuned(training_run)
            model, training = tuned.model, dict(vars(tuned.training))
            del training["resumed_at_step"]
        suite = self.suite
        scores, answers = suite.evaluate(on_best_device(model.eval()), self.progress)
        _require_finite(scores, training_run)
        training_run.folder.mkdir(parents=True, exist_ok=True)
        ids = [suite.instances[i].instance_id for i in suite.answered]
        lines = [
            {"id": i, "answer": answer, "reference": reference}
            for i, answer, reference in zip(ids, answers, suite.references, strict=True)
        ]
        (training_run.folder / ANSWERS).write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
        result = {
            "identity": training_run.identity,
            "arm": training_run.arm.label,
            "seed": training_run.index,
            "n_rows": len(training_run.instances),
            "training": training,
            "scores": scores,
        }
        write_json(training_run.folder / SCORES, result)
        shutil.rmtree(training_run.checkpoints, ignore_errors=True)
        return result

    def _tuned(self, training_run: TrainingRun) -> FineTuned:
        saved = find_loadable(training_run)
        if saved is not None:
            logger.info(f"trained before, weights in {saved}: only evaluated")
            return load_saved(saved, training_run, self.run)
        return train_run(
            training_run,
            self.run,
            save_to=training_run.model_folder if self.training.keep_models else None,
            save_steps=self.training.save_steps,
            progress=self.progress,
        )


def _read_result(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        logger.warning(f"{path}: not JSON; this model is evaluated again")
        return None


def tokens_to_train(training_run: TrainingRun) -> int:
    """Return how many tokens are trained on; 0 where there is only something to evaluate."""
    if training_run.settings is None or find_loadable(training_run) is not None:
        return 0
    return training_run.n_tokens


def _require_finite(scores: Mapping[str, Any], training_run: TrainingRun) -> None:
    texts = scores["texts"].values()
    losses = [*scores["rows"]["loss"], *(loss for text in texts for loss in text["loss"])]
    if not all(map(math.isfinite, losses)):
        raise GradsiftError(
            f"{training_run.title}: its held-out loss is not a finite number; the training "
            "diverged. Lower learning_rate, or leave the arm out; what is done is kept."
        )
