"""Every setting, once: its type, its default, its help.

The options of the command line, the keys of YAML files, the keyword arguments of the Python
functions, docs/cli.md and the config.yaml of a run folder all derive from the models below. What
they share they inherit, so that one `RunConfig` can be given wherever a part of it is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import field_validator, model_validator

from gradsift.schema import BudgetValue, DataNames, Group, PathText, Several, Words, setting
from gradsift.terms import LAYERS, LM_HEAD, SKETCH_SIZE, STATISTICS, CaptureMethod, LoopMethod

DATA, MODEL, CAPTURE, SELECTION = "Data", "Model", "Capture", "Selection"
TRAINING, EVALUATION = "Training", "Evaluation"
# In the order in which help lists them.
GROUPS = (DATA, MODEL, CAPTURE, TRAINING, SELECTION, EVALUATION)

# What `replay` says where the model is to write the rows, and the share if none is given.
SELF, REPLAY_RATIO = "self", 0.05

Dtype = Literal["float32", "bfloat16", "float16"]
Batching = Literal["packed", "by_length", "random"]
Layer = Literal["embedding", "lm_head"]
Covariate = Literal["response_length", "prompt_length", "step"]
Trainer = Literal["trl", "llamafactory", "axolotl", "openai"]
COVARIATES: tuple[Covariate, ...] = ("response_length", "prompt_length", "step")
# Settings that belong together, by a name. Those given beside `preset` win.
PRESETS: dict[str, dict[str, Any]] = {
    # The paper's plain reading: density of the log-norms at both layers, and nothing taken off.
    "paper": {
        "score": "density",
        "layers": LAYERS,
        "signal_statistics": ("l2_norm",),
        "detrend": (),
    },
}
BUDGET_HELP = "How much to keep of the usable rows: 50%, 500 (rows), 20000tok (tokens) or auto."

# Of `sft`: what only says where a training is reported to. It determines nothing, and holds for the
# call that says it.
REPORTS = ("report_to", "run_name", "project")


def without_reports(sft: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings for SFTConfig without those that say where a training is reported to."""
    return {key: value for key, value in sft.items() if key not in REPORTS}


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings over those of the preset that they name; what is none is refused elsewhere."""
    preset = values.get("preset")
    return {**(PRESETS.get(preset, {}) if isinstance(preset, str) else {}), **values}


class ReadingConfig(Group):
    """How rows are read."""

    format: str | None = setting(
        None,
        "prompt_completion, messages, text, alpaca, sharegpt, qa or preference (detected).",
        DATA,
        option=True,
    )
    prompt_column: str | None = setting(None, "Field with the question.", DATA, option=True)
    response_column: str | None = setting(None, "Field with the answer.", DATA, option=True)
    context_column: str | None = setting(
        None, "Field with text that follows the question (input of alpaca, context).", DATA
    )
    system_column: str | None = setting(None, "Field with a system prompt.", DATA)
    id_column: str | None = setting(None, "Field with the row's id (id).", DATA)
    source_column: str | None = setting(
        None, "Field that says where a row comes from (source).", DATA
    )
    dataset_info: PathText | None = setting(
        None, "LLaMA-Factory's dataset_info.json; DATA is a name in it.", DATA
    )
    split: str | None = setting(None, "Split of a hub dataset or of a folder.", DATA)
    data_config: str | None = setting(
        None,
        "Configuration of a hub dataset that has several (gsm8k: main, socratic).",
        DATA,
        option=True,
    )
    duplicate_ids: Literal["rename", "drop"] = setting(
        "rename",
        "What becomes of a row with the id of another that says something else: called id#2, or "
        "dropped.",
        DATA,
    )
    train_on: Literal["all", "last"] = setting("all", "Assistant turns trained on.", DATA)


class ModelConfig(Group):
    """Which model."""

    model: PathText = setting(
        ..., 'Hub id, folder with safetensors, or "demo".', MODEL, option=True
    )
    revision: str | None = setting(None, "Revision of a hub model.", MODEL)
    dtype: Dtype = setting("float32", "Data type of the weights.", MODEL, option=True)
    load_in: Literal["4bit", "8bit"] | None = setting(
        None,
        "Quantise the weights while loading: 4bit (QLoRA) or 8bit, under LoRA.",
        MODEL,
        option=True,
    )
    trust_remote_code: bool = setting(
        False, "Run code that comes with a model.", MODEL, option=True
    )


class SeedConfig(Group):
    """What everything drawn starts from."""

    seed: int = setting(
        0,
        "Seed of everything drawn: order of rows, samples, sketches.",
        SELECTION,
        option=True,
        ge=0,
    )


class MethodConfig(Group):
    """How gradients are recorded."""

    recording: Literal["auto", CaptureMethod] = setting(
        "auto", "Method of recording; auto takes the first exact one.", CAPTURE
    )


class LengthConfig(Group):
    """How long instances may be."""

    max_length: int = setting(
        1024, "Tokens after which an instance is truncated.", CAPTURE, option=True, ge=2
    )


class SketchConfig(SeedConfig):
    """How gradients are sketched."""

    sketch_size: Literal[64, 128, 256, 512, 1024, 2048] = setting(
        SKETCH_SIZE, "Numbers of a gradient sketch.", CAPTURE
    )


class TrainerConfig(Group):
    """How a model is trained."""

    sft: dict[str, Any] = setting({}, "Setting of trl's SFTConfig.", TRAINING, option=True)
    lora: dict[str, Any] | bool | None = setting(
        None,
        "Train LoRA adapters (settings of peft's LoraConfig: lora.r=8) or all parameters.",
        TRAINING,
        option=True,
    )
    save_steps: int | None = setting(
        None,
        "Optimizer steps between checkpoints (some 8 in an epoch, 4 in a training).",
        TRAINING,
        ge=1,
    )

    def lora_settings(self) -> dict[str, Any] | None:
        """Settings for peft's LoraConfig, or None for full-parameter training."""
        if isinstance(self.lora, dict):
            return self.lora
        return {} if self.lora else None


class AdaptedModelConfig(ModelConfig, TrainerConfig):
    """Which model, and whether adapters are trained over its weights."""

    @model_validator(mode="after")
    def _adapters_over_quantised_weights(self) -> AdaptedModelConfig:
        if self.load_in is None or self.lora_settings() is not None:
            return self
        if "lora" in self.model_fields_set:
            raise ValueError(
                f"`load_in: {self.load_in}` quantises the weights, over which only adapters are "
                "trained: take `lora: false` or `load_in` out"
            )
        raise ValueError(
            f"`load_in: {self.load_in}` quantises the weights, over which only adapters are "
            "trained: add `lora`"
        )


class CheckConfig(AdaptedModelConfig, MethodConfig, SeedConfig):
    """What `check` is told."""


class LoopConfig(SketchConfig):
    """How gradients are recorded around a training loop that is not ours."""

    recording: Literal["auto", LoopMethod] = setting(
        "auto", "Method of recording; auto takes the first exact one.", CAPTURE
    )


class CaptureConfig(TrainerConfig, LengthConfig, MethodConfig, SketchConfig):
    """How a pool is captured."""

    truncation: Literal["keep_start", "keep_end", "drop"] = setting(
        "keep_start", "What becomes of longer instances.", CAPTURE
    )
    chat_template: str | None = setting(
        None,
        "Require that the model's own chat template is like this one (chatml, llama3, …); "
        "tokenizer_default: whichever it is.",
        CAPTURE,
    )
    chat_template_kwargs: dict[str, Any] = setting(
        {},
        "Argument of the chat template for all rows (enable_thinking=false); those of a row's own "
        "field chat_template_kwargs go before.",
        CAPTURE,
        option=True,
    )
    template_date: date | None = setting(
        None, "Day that a chat template writes as today (the day of the first capture).", CAPTURE
    )
    batching: Literal["auto", Batching] = setting(
        "auto",
        "How rows are put into micro-batches: packed end to end, by_length, random (padded to the "
        "longest), or auto: packed if the model keeps packed rows apart, else by_length.",
        CAPTURE,
    )
    signal: Literal["full", "head"] | None = setting(
        None, "full (both layers) or head (no backward pass; default when scoring).", CAPTURE
    )
    record_at: Literal["during", "after"] | None = setting(
        None, "Record during the preliminary epoch (default), or after it: a scoring pass.", CAPTURE
    )
    warmup_fraction: float = setting(
        1.0, "Fraction of the rows trained on before scoring; 0 for none.", CAPTURE, ge=0, le=1
    )

    @model_validator(mode="after")
    def _signal_fits(self) -> CaptureConfig:
        if self.record_at == "during" and (self.signal == "head" or self.warmup_fraction < 1):
            raise ValueError(
                "`record_at: during` records the whole epoch, both layers; `signal: head` and "
                "`warmup_fraction` below 1 need `record_at: after`"
            )
        return self

    @property
    def scores_after(self) -> bool:
        """Whether the signal is taken after training: if that is asked for, or implied."""
        implied = self.signal == "head" or self.warmup_fraction < 1
        return self.record_at == "after" or (self.record_at is None and implied)

    @property
    def backward(self) -> bool:
        """Whether recording needs a backward pass: both layers do, scoring takes the head alone."""
        return (self.signal or ("head" if self.scores_after else "full")) == "full"

    @property
    def layers_recorded(self) -> tuple[str, ...]:
        """Layers of which each instance gets a record."""
        return LAYERS if self.backward else (LM_HEAD,)

    @property
    def identity(self) -> dict[str, object]:
        """What determines the records of a given pool and model."""
        identity = {
            "max_length": self.max_length,
            "truncation": self.truncation,
            "sft": without_reports(self.sft),
            "lora": self.lora_settings(),
            "seed": self.seed,
            "sketch_size": self.sketch_size,
            "signal": "full" if self.backward else "head",
            "record_at": "after" if self.scores_after else "during",
            "warmup_fraction": self.warmup_fraction,
        }
        # auto follows from the model.
        return identity if self.batching == "auto" else identity | {"batching": self.batching}


class GateConfig(Group):
    """Which rows are called faulty."""

    gate_threshold: float = setting(
        0.2,
        "p above which the gate calls a row faulty: the share of the faulty rows that it misses.",
        SELECTION,
        gt=0,
        lt=1,
    )


class SelectionConfig(GateConfig, SeedConfig):
    """How rows are selected: everything but how many."""

    preset: Literal["paper"] | None = setting(
        None,
        "Settings by one name; those given beside it win. paper: its plain reading (density of "
        "both layers' norms, nothing taken off).",
        SELECTION,
        option=True,
    )
    strategy: str = setting(
        "grads",
        "grads, random, or another that `gradsift strategies` lists.",
        SELECTION,
        option=True,
    )
    score: str = setting(
        "low-norm",
        "Gradient score: low-norm, density or another that `gradsift strategies` lists; several, "
        "as prompt-gain+low-norm, go by the lowest of a row's ranks.",
        SELECTION,
        option=True,
    )
    rank_within: Literal["pool", "cluster"] = setting(
        "pool",
        "Which rows a row's gradient score is ranked among: the pool, or its cluster of content.",
        SELECTION,
    )
    layers: Annotated[tuple[Layer, ...], Words] | None = setting(
        None,
        "Layers whose statistics make the signal: embedding, lm_head (all there are).",
        SELECTION,
    )
    signal_statistics: Annotated[tuple[str, ...], Words] = setting(
        ("l2_norm",), f"Statistics that make the signal: {', '.join(STATISTICS)}.", SELECTION
    )
    detrend: Annotated[tuple[Covariate, ...], Words] = setting(
        COVARIATES,
        "Covariates taken off the signal first: response_length, prompt_length, step; or none.",
        SELECTION,
    )
    alpha: float = setting(
        1.0, "Weight of the gradient score.", SELECTION, ge=0, allow_inf_nan=False
    )
    beta: float = setting(1.0, "Weight of content diversity.", SELECTION, ge=0, allow_inf_nan=False)
    gamma: float = setting(
        1.0, "Weight of similarity reduction.", SELECTION, ge=0, allow_inf_nan=False
    )
    similarity_threshold: float = setting(
        0.8, "Similarity above which rows repeat each other.", SELECTION, ge=0, lt=1
    )
    quota: dict[str, str | int] = setting(
        {},
        'Most rows of a source, as SOURCE=500 or SOURCE=25%; "*" for all others.',
        SELECTION,
        option=True,
    )
    keep: PathText | None = setting(
        None, "File of ids that are selected first.", SELECTION, option=True
    )
    drop: PathText | None = setting(
        None, "File of ids that are never selected.", SELECTION, option=True
    )
    gate: bool = setting(
        False,
        "Drop rows whose answer does not depend on their prompt, and answers that are no text.",
        SELECTION,
        option=True,
    )
    anchor: PathText | None = setting(
        None, "Run folder of general rows, for ogs-static.", SELECTION
    )
    target: PathText | None = setting(
        None, "Run folder of target rows, for target-similarity, target-turns and rds.", SELECTION
    )

    @model_validator(mode="before")
    @classmethod
    def _beneath_it_a_preset(cls, values: Any) -> Any:
        return with_preset(values) if isinstance(values, dict) else values

    @field_validator("score")
    @classmethod
    def _without_blanks(cls, names: str) -> str:
        return "+".join(name.strip() for name in names.split("+"))

    @field_validator("detrend", mode="before")
    @classmethod
    def _none_is_nothing(cls, names: object) -> object:
        return () if names in ("none", ["none"], ("none",)) else names

    @field_validator("signal_statistics")
    @classmethod
    def _known_statistics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or not set(names) <= set(STATISTICS):
            raise ValueError(f"expected one or more of {', '.join(STATISTICS)}")
        return names

    @field_validator("layers")
    @classmethod
    def _some_layer(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and not names:
            raise ValueError("expected embedding, lm_head or both")
        return names

    @model_validator(mode="after")
    def _something_to_maximise(self) -> SelectionConfig:
        if not (self.alpha or self.beta or self.gamma):
            raise ValueError(
                "alpha, beta and gamma are all 0: there is nothing to maximise. Give one of them "
                "a value above 0, or use the strategy random"
            )
        return self


class SubsetConfig(SelectionConfig):
    """A selection that is written."""

    weights: bool = setting(
        False, "Add a weight for each kept row to decisions.parquet.", SELECTION
    )
    export: Annotated[tuple[Trainer, ...], Several] = setting(
        (),
        "Write the rows in a trainer's own form too, with a configuration that runs: trl, "
        "llamafactory, axolotl or openai.",
        SELECTION,
        option=True,
    )
    name: str | None = setting(None, "Name of the selection's folder.", SELECTION, option=True)
    report: bool | None = setting(
        None,
        "Write report.html, a page that shows the selection (default: up to 20,000 rows; above, "
        "`gradsift report` writes it).",
        SELECTION,
    )
    details: bool = setting(
        False, "Show the tables of criteria and audit, not only what was kept.", SELECTION
    )


class RowsConfig(Group):
    """Where the rows of a run are that were moved, or captured by somebody else."""

    data: DataNames | None = setting(
        None,
        "Where the run's rows are, if somebody else captured them or they were moved; they have to "
        "be the same.",
        DATA,
    )


class TrustConfig(Group):
    """Whether code of a run's model runs; what the run folder says of it does not count."""

    trust_remote_code: bool = setting(
        False, "Run code that comes with the run's model.", MODEL, option=True
    )


class RunConfig(ReadingConfig, AdaptedModelConfig, CaptureConfig, SubsetConfig):
    """Everything that `gradsift run` can be told."""

    data: DataNames = setting(
        ..., "SFT file, folder, pattern (data/*.jsonl) or hub id; or several of them.", DATA
    )
    out: PathText = setting(..., "Run folder; run again to resume.", DATA, option=True)
    budget: BudgetValue | None = setting(
        None,
        BUDGET_HELP,
        SELECTION,
        option=True,
    )

    @field_validator("budget", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError("expected 50%, 500 or 20000tok")
        return value


class ArmTrainingConfig(TrainerConfig):
    """How every arm is trained; what is not said is as in the capture."""

    epochs: float = setting(
        3, "Passes over an arm's rows.", TRAINING, option=True, gt=0, allow_inf_nan=False
    )
    keep_models: bool = setting(
        False, "Keep the weights of every arm, to ask them more later.", TRAINING, option=True
    )


class ReplayConfig(Group):
    """General rows that are trained on beside an arm's own, against forgetting."""

    replay: PathText | None = setting(
        None,
        "General rows that are trained on beside an arm's own, against forgetting: file, folder, "
        "hub id, run folder, or self (the untrained model writes them).",
        TRAINING,
        option=True,
    )
    replay_ratio: float | None = setting(
        None,
        "Share of replay in the tokens that have a loss (0.05).",
        TRAINING,
        option=True,
        gt=0,
        lt=1,
    )
    replay_choice: Literal["random", "least_conflict"] = setting(
        "random",
        "Which of these rows: random, or least_conflict with an arm's own, of a run folder.",
        TRAINING,
    )
    replay_split: str | None = setting(
        None, "Split of rows for replay that come in several.", TRAINING
    )

    @model_validator(mode="after")
    def _of_some_rows(self) -> ReplayConfig:
        fields = type(self).model_fields.items()
        idle = [name for name, field in fields if getattr(self, name) != field.default]
        if self.replay is None and idle:
            raise ValueError(
                f"`{idle[0]}` is given, but no rows for it: add `replay` with a file, a folder, a "
                "hub id, a run folder or self"
            )
        if self.replay == SELF and (self.replay_split or self.replay_choice != "random"):
            raise ValueError(
                "`replay: self` writes its rows, which are taken as they come: leave out "
                "`replay_choice` and `replay_split`"
            )
        return self

    @property
    def ratio(self) -> float:
        """Of arms that do not say their own; 0 without replay."""
        if self.replay is None:
            return 0.0
        return REPLAY_RATIO if self.replay_ratio is None else self.replay_ratio


class ArmConfig(Group):
    """One arm that is trained."""

    arm: str = setting(
        "grads",
        "full, full-equal-steps or a strategy, perhaps with settings, as for compare.",
        TRAINING,
        option=True,
    )
    budget: BudgetValue | None = setting(
        None, "Budget of the arm: 50%, 500 (rows) or 20000tok (tokens).", TRAINING, option=True
    )
    out: PathText | None = setting(
        None, "Folder for the model (in the run folder).", TRAINING, option=True
    )


class EvaluationConfig(Group):
    """What every model of a comparison is asked, besides the held-out rows."""

    general: Annotated[tuple[PathText, ...], Several] = setting(
        ("sanity",),
        "What the model could do before: lm-eval tasks, task files (.yaml), text files (.txt, for "
        "perplexity) or sanity (questions of ours), with commas.",
        EVALUATION,
        option=True,
    )
    limit: int | None = setting(
        None, "Items asked of each task, the first ones (all).", EVALUATION, option=True, ge=1
    )
    max_new_tokens: int | None = setting(
        None,
        "Most tokens of an answer (as many as the longest reference, at most 256).",
        EVALUATION,
        ge=1,
    )
    trust_remote_code: bool = setting(
        False,
        "Run code that a task file names, or that comes with the run's model.",
        EVALUATION,
        option=True,
    )


class ArmsConfig(Group):
    """What is compared."""

    arms: Annotated[tuple[str, ...], Several] = setting(
        ("base", "full", "full-equal-steps", "random", "grads"),
        "base, full, full-equal-steps (full data, a subset's steps), random or another strategy, "
        "with commas; NAME@BUDGET:key=value gives one a budget, settings of the selection or seeds "
        "of its own.",
        TRAINING,
        option=True,
    )
    budgets: Annotated[tuple[BudgetValue, ...], Several] = setting(
        ("50%",), "Budgets of arms that name none, with commas.", TRAINING, option=True
    )
    seeds: int = setting(3, "Trainings of each arm.", TRAINING, option=True, ge=1)


class PlanConfig(ModelConfig, LengthConfig):
    """What a memory plan is made for."""

    dtype: Dtype = setting("bfloat16", "Data type of the weights.", MODEL, option=True)
    lora: bool | None = setting(
        None, "Only LoRA, or only all parameters; both if not said.", TRAINING, option=True
    )
    gpus: int = setting(8, "GPUs of the machine.", CAPTURE, option=True, ge=1)
    gpu_memory: float = setting(80, "GB of memory of each GPU.", CAPTURE, option=True, gt=0)
    batch_size: int = setting(1, "Rows of a micro-batch on each GPU.", CAPTURE, option=True, ge=1)
    lora_rank: int = setting(8, "Rank of LoRA's adapters.", CAPTURE, option=True, ge=1)


class DemoConfig(SeedConfig):
    """What the demo is told."""

    out: PathText = setting("runs/demo", "Run folder.", DATA, option=True)
    rows: int = setting(160, "Rows drawn from the pool.", DATA, option=True, ge=20)
    budget: BudgetValue = setting("50%", "How much to keep, as for select.", SELECTION, option=True)
    compare: bool = setting(
        False, "Train on the subset and its rivals: 15 minutes.", EVALUATION, option=True
    )
