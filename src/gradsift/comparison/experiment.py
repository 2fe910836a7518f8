"""Train and evaluate every training run; what was done once is not done again."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout

from gradsift.comparison.results import EvaluatedModel
from gradsift.comparison.suite import EvaluationSuite
from gradsift.comparison.training_runs import (
    TrainingRun,
    find_saved,
    find_whole,
    is_loadable,
    load_saved,
    train_run,
)
from gradsift.config import ArmTrainingConfig
from gradsift.errors import GradsiftError
from gradsift.files import write_text
from gradsift.progress import Progress, no_progress, tell_kept
from gradsift.run_folder import Run
from gradsift.seals import DamagedError, read_json, require_file, sha256_of, write_json
from gradsift.training.checkpoint import remove_checkpoints
from gradsift.training.cost import duration
from gradsift.training.finetune import FineTuned
from gradsift.training.loss_curve import first_and_last, loss_sentence
from gradsift.training.model import load_model, on_best_device
from gradsift.wording import first_line

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
    _told: set[str] = field(default_factory=set)

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
                    # A kill between the result and the tidying up leaves them.
                    remove_checkpoints(self.training_runs[at].checkpoints)
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
                None if training_run.replayed is None else training_run.replayed.summary(),
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
            result = self._read_result(path, identity)
            if result is None:
                continue
            digest, answers = result.get("answers_sha256"), path.with_name(ANSWERS)
            if digest is not None and answers.exists() and _digest_of(answers) != digest:
                self._warn_once(f"{answers} is damaged; this model is evaluated again")
                continue
            alike = self.suite.would_score_alike(result["scores"])
            if alike or self._answers_beside(path) is not None:
                return path, result
            self._warn_once(
                f"{path}: its answers were scored in another way than now, and {ANSWERS} beside it "
                "is not there or not whole; this model is made again"
            )
        return None

    def _read_result(self, path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
        try:
            result = read_json(path)
            if result["identity"] != identity:
                raise ValueError
            _require_shape(result, self.suite)
        except (GradsiftError, OSError) as error:
            why = first_line(error)
        except (TypeError, KeyError, ValueError, AttributeError, IndexError):
            why = "it does not hold what was asked"
        else:
            return result
        self._warn_once(f"{path} is damaged ({why}); this model is evaluated again")
        return None

    def _warn_once(self, message: str) -> None:
        # A result is looked for more than once: for the forecast, and before and under its lock.
        if message not in self._told:
            self._told.add(message)
            logger.warning(message)

    def _answers_beside(self, path: Path) -> list[str] | None:
        """Read the answers to the held-out prompts, in their order, if all of them are there."""
        try:
            require_file(path.with_name(ANSWERS))
            # Not splitlines: an answer may have other signs that end a line.
            text = path.with_name(ANSWERS).read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.split("\n") if line]
            found = [(line["reference"], str(line["answer"])) for line in lines]
        except (DamagedError, OSError, ValueError, KeyError, TypeError, RecursionError):
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
        training_run.require_no_links()
        if training_run.settings is None:
            model, training = load_model(self.run.model), None
        else:
            tuned = self._tuned(training_run)
            model, training = tuned.model, dict(vars(tuned.training))
            del training["resumed_at_step"]
            logger.info(loss_sentence(first_and_last(tuned.training.loss_curve)))
        suite = self.suite
        scores, answers = suite.evaluate(on_best_device(model.eval()), self.progress)
        _require_finite(scores, training_run)
        ids = [suite.instances[i].instance_id for i in suite.answered]
        lines = [
            {"id": i, "answer": answer, "reference": reference}
            for i, answer, reference in zip(ids, answers, suite.references, strict=True)
        ]
        answers_file = training_run.folder / ANSWERS
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(answers_file, text)
        result = {
            "identity": training_run.identity,
            "arm": training_run.arm.label,
            "seed": training_run.index,
            "n_rows": len(training_run.instances),
            "training": training,
            "scores": scores,
            "answers_sha256": sha256_of(answers_file),
        }
        write_json(training_run.folder / SCORES, result)
        tell_kept(self.progress)
        remove_checkpoints(training_run.checkpoints)
        return result

    def _tuned(self, training_run: TrainingRun) -> FineTuned:
        saved = find_whole(training_run) if is_loadable(training_run) else None
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


def tokens_to_train(training_run: TrainingRun) -> int:
    """Return how many tokens are trained on; 0 where there is only something to evaluate."""
    if training_run.settings is None:
        return 0
    is_trained = is_loadable(training_run) and find_saved(training_run) is not None
    return 0 if is_trained else training_run.n_tokens


def _require_shape(result: dict[str, Any], suite: EvaluationSuite) -> None:
    """Raise an error of Python's own for what is not the result of a model that was asked this."""
    training, scores = result["training"], result["scores"]
    _require_numbers([scores["seconds"]], 1)
    if training is not None:
        _require_numbers([training[name] for name in ("n_steps", "n_tokens", "seconds")], 3)
        _require_numbers([training.get("n_instances", 0)], 1)
        steps_and_losses = [number for pair in training.get("loss_curve", ()) for number in pair]
        _require_numbers(steps_and_losses, 2 * len(training.get("loss_curve", ())))
    _require_numbers(scores["rows"]["loss"], len(suite.instances))
    if scores["rows"]["source"] != list(suite.sources):
        raise ValueError
    if scores["texts"].keys() != suite.windows.keys():
        raise ValueError
    for name, windows in suite.windows.items():
        _require_numbers(scores["texts"][name]["loss"], len(windows))
    for task in scores["tasks"].values():
        _require_numbers(task["scores"], len(task["scores"]))
    if ("answers" in scores) != bool(suite.prompts):
        raise ValueError
    if "answers" in scores:
        n_answers, answers = len(suite.prompts), scores["answers"]
        for name in ("meteor", "rouge_l"):
            measured = [value for value in answers[name] if value is not None]
            _require_numbers(measured, n_answers - answers[name].count(None))
        for name in ("bleu", "chrf"):
            for counts in answers[name]:
                _require_numbers(counts, len(answers[name][0]))
            if len(answers[name]) != n_answers:
                raise ValueError
        if not isinstance(answers["signatures"], dict):
            raise TypeError


def _require_numbers(values: list[Any], n: int) -> None:
    if type(values) is not list or len(values) != n:
        raise ValueError
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise TypeError


def _require_finite(scores: Mapping[str, Any], training_run: TrainingRun) -> None:
    texts = scores["texts"].values()
    losses = [*scores["rows"]["loss"], *(loss for text in texts for loss in text["loss"])]
    if not all(map(math.isfinite, losses)):
        raise GradsiftError(
            f"{training_run.title}: its held-out loss is not a finite number; the training "
            "diverged. Lower learning_rate, or leave the arm out; what is done is kept."
        )


def _digest_of(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except DamagedError:  # No file.
        return None
