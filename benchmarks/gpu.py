"""On a GPU: is everything exact on this device, and what does a step cost beside trl's own?

Correctness comes first: the LM head's numbers and gradients against float64 written here, whole
self-checks, what waits for the device, how many kernels. Then speed: steps of random weights in the
shapes of real models, each way in turn in one run. It ends non-zero if a number is off or something
broke; a missed goal of speed is only printed. FOLDER/gpu.json is written after each section.

Usage: python benchmarks/gpu.py [--out .gpu/out]
       [--sections head,gradients,embedding,self-checks,waits,speed,packing]
       [--shapes 135m,1b,7b-lora-32k,7b-lora-152k,7b-qlora-32k] [--repeats 5] [--seed N] [--tiny]
"""

import argparse
import gc
import importlib.util
import json
import math
import os
import platform
import random
import subprocess
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
from trl import SFTTrainer

import gradsift
from gradsift.data.tokenization import Instance
from gradsift.gradients.backends import BATCHED, BLOCKWISE, TRITON, backends_for
from gradsift.gradients.fused import FusedHead
from gradsift.gradients.head import HeadOutputs, HeadProduct, head_pass
from gradsift.gradients.sketch import SketchSpec, TensorSketch
from gradsift.gradients.statistics import embedding_summaries
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform
from gradsift.terms import STATISTICS
from gradsift.training.batches import INDEX_COLUMN, TOKENS
from gradsift.training.self_check import METHODS, first_exact_method, recorder_for, self_check
from gradsift.training.settings.trainer import TrainerSettings
from gradsift.training.trainer import RecordingSFTTrainer

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
LAYOUTS = {"compact": ResponseTokens.compact, "every position": ResponseTokens.every_position}
PACKAGES = ("gradsift", "trl", "transformers", "accelerate", "peft")


class Report:
    """Prints with the elapsed seconds, and keeps what was found."""

    def __init__(self, folder):
        self.started, self.path = time.perf_counter(), Path(folder) / "gpu.json"
        self.found = {"wrong": [], "checks": [], "waits": [], "speed": {}, "packing": {}}

    def say(self, text):
        print(f"[{time.perf_counter() - self.started:6.1f} s] {text}", flush=True)

    def wrong(self, text):
        self.found["wrong"].append(text)
        self.say(f"WRONG {text}")

    def judge(self, name, errors, allowed):
        self.found["checks"].append({"name": name, "allowed": allowed, "errors": errors})
        worst = max(errors, key=errors.get)
        text = f"{name}: {errors[worst]:.1e} at {worst} (allowed {allowed:.0e})"
        if errors[worst] <= allowed:
            self.say(f"ok    {text}")
        else:
            off = {key: f"{value:.1e}" for key, value in errors.items() if value > allowed}
            self.wrong(f"{text}, {off}")

    def attempt(self, section, function, *args):
        """Report what breaks in one section, and go on with the others."""
        self.say(f"== {section}")
        try:
            function(self, *args)
        except torch.OutOfMemoryError as error:
            self.say(f"OUT OF MEMORY in {section}: {str(error).splitlines()[0]}")
        except Exception as error:
            self.wrong(f"{section} broke: {type(error).__name__}: {error}")
            print(traceback.format_exc(), flush=True)
        release()
        self.found["seconds"] = time.perf_counter() - self.started
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1))


def release():
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def synchronize():
    if CUDA:
        torch.cuda.synchronize()


def poison():
    """Leave memory behind that is NaN in every dtype: what is not written shows."""
    sizes = [2**power for power in range(6, 28 if CUDA else 18)] * 3
    _ = [torch.full((size,), -1, dtype=torch.int32, device=DEVICE) for size in sizes]


def to_check():
    """The ways of computing, the default of this device first."""
    if CUDA:
        return backends_for(DEVICE, torch.float32)
    return [BLOCKWISE, BATCHED, *([TRITON] if INTERPRETED else [])]


# The float64 reference. Shapes: n tokens of one row, V vocabulary, r of it in a block, D width.


class Truth:
    """Statistics and sketch of a gradient that comes in blocks of its rows."""

    def __init__(self, sketch, width):
        self.sketch, self.n_entries = sketch, len(sketch.sign_V) * width
        self.blocks = []
        self.left_KD = torch.zeros(sketch.size, width, dtype=torch.float64, device=DEVICE)

    def add(self, gradient_rD, start):
        g, size = gradient_rD, self.sketch.size
        self.blocks.append(torch.stack([g.max(), g.min(), g.sum(), g.abs().sum(), (g * g).sum()]))
        row_r = torch.arange(start, start + len(g), device=DEVICE)
        bucket_r = row_r % size
        self.left_KD.index_add_(0, bucket_r, g * self.sketch.sign_V[row_r].double().unsqueeze(1))

    def errors(self, values_S, sketch_K):
        """`mean` is measured against mean_abs, the ends by the larger one, the sketch by l2."""
        blocks_b5, n, size = torch.stack(self.blocks), self.n_entries, self.sketch.size
        high, low = float(blocks_b5[:, 0].max()), float(blocks_b5[:, 1].min())
        mean, mean_abs, mean_square = (blocks_b5[:, 2:].sum(0) / n).tolist()
        std, norm = math.sqrt(mean_square - mean**2), math.sqrt(mean_square * n)
        end = max(abs(high), abs(low))
        want, scales = (high, low, mean, mean_abs, std, norm), (end, end, mean_abs)
        columns = zip(STATISTICS, values_S.tolist(), want, (*scales, *want[3:]), strict=True)
        errors = {name: number(abs(got - value) / by) for name, got, value, by in columns}
        sign_D, bucket_D = self.sketch.column_DK.sum(1), self.sketch.column_DK.abs().argmax(1)
        bucket_KD = (torch.arange(size, device=DEVICE).unsqueeze(1) + bucket_D) % size
        weights = (self.left_KD * sign_D).flatten()
        want_K = torch.bincount(bucket_KD.flatten(), weights, minlength=size)
        return {**errors, "sketch": number((sketch_K.double() - want_K).norm() / norm)}


def number(value):
    """What is not a number is the worst of all."""
    value = float(value)
    return value if math.isfinite(value) else math.inf


def largest(errors):
    return {key: max(of_row[key] for of_row in errors) for key in errors[0]}


def row_truth(x_nD, weight_VD, bias_V, targets_n, case, sketch):
    """Loss, EL2N and gradient of one row, by blocks of the vocabulary: memory is bounded."""
    x_nD, (n_tokens, width) = x_nD.double(), x_nD.shape
    at_once, scale, cap = max(1, min(2**26 // width, 2**25 // n_tokens)), case.scale, case.softcap

    def logits_of(start):
        block = slice(start, start + at_once)
        z_nr = x_nD @ weight_VD[block].double().T
        z_nr = scale * (z_nr if bias_V is None else z_nr + bias_V[block].double())
        return z_nr if cap is None else cap * torch.tanh(z_nr / cap)

    starts = range(0, len(weight_VD), at_once)
    log_sums = [torch.logsumexp(logits_of(start), 1) for start in starts]
    log_sum_n1 = torch.logsumexp(torch.stack(log_sums), 0).unsqueeze(1)
    square_n, loss, truth = 0, 0.0, Truth(sketch, width)
    for start in starts:
        logits_nr = logits_of(start)
        column_r = torch.arange(start, start + logits_nr.shape[1], device=DEVICE)
        is_target_nr = column_r == targets_n.unsqueeze(1)
        loss += float((log_sum_n1 - logits_nr)[is_target_nr].sum()) / n_tokens
        delta_nr = (logits_nr - log_sum_n1).exp() - is_target_nr.double()
        square_n = square_n + delta_nr.square().sum(1)
        slope = scale if cap is None else scale * (1 - (logits_nr / cap) ** 2)
        truth.add((delta_nr * slope).T @ x_nD / n_tokens, start)
    return loss, float(square_n.sqrt().mean()), truth


# 1a. The head's pass.


@dataclass(frozen=True)
class Case:
    n_columns: int
    width: int
    lengths: tuple[int, ...] = (0, 1, 2, 17, 256)
    sketch_size: int = 1024
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    tokens_at_once: int | None = None  # Logits of so many tokens at once, gradients of three rows.

    def name(self):
        return f"V={self.n_columns} D={self.width}" + (" in pieces" if self.tokens_at_once else "")

    def bounded(self, backend, dtype):
        if self.tokens_at_once is None:
            return backend
        itemsize = backend.kernels().operand_dtype(dtype).itemsize
        formed = backend.gradient_bytes and 3 * backend.align * self.width * itemsize
        logits = self.tokens_at_once * self.n_columns * itemsize
        return replace(backend, logits_bytes=logits, gradient_bytes=formed)

    def sketch(self, seed):
        spec = {"size": self.sketch_size, "seed": seed, "device": DEVICE}
        return TensorSketch.seeded(self.n_columns, self.width, **spec)


CASES = (
    Case(97, 24, sketch_size=64, bias=True),
    Case(512, 100, softcap=5.0),
    Case(32_000, 4096, scale=0.5),
    Case(32_000, 200, (256, 1, 2, 0, 17, 300, 1000), 256, True, softcap=10.0, tokens_at_once=600),
    Case(49_152, 576, sketch_size=256, bias=True, scale=2.0, softcap=8.0),
    Case(49_152, 577, (1, 2, 17, 256, 4096)),
    Case(128_256, 2048),
    Case(152_064, 3584, (1, 2, 17, 256, 1200), 2048, softcap=30.0),
)
TINY_CASES = (
    Case(97, 24, (0, 1, 2, 17), 64, bias=True),
    Case(512, 33, (1, 2, 17), softcap=5.0),
    Case(4500, 48, (1, 2, 17), 256, bias=True, scale=2.0, softcap=8.0),
    Case(2500, 20, (5, 1, 2, 0, 6, 16), 2048, True, softcap=10.0, tokens_at_once=14),
)


def head_inputs(case, seed):
    """Labels and mask as a collator makes them, and each row's first response token.

    Half of a row's targets are of three tokens: some more than once, and both ends of the table.
    """
    generator = torch.Generator().manual_seed(seed)
    labels_BT = torch.full((len(case.lengths), max(case.lengths) + 5), -100)
    mask_BT, begins = torch.ones_like(labels_BT), [1 + row % 3 for row in range(len(labels_BT))]
    few = torch.tensor([0, case.n_columns - 1, 2047 % case.n_columns])
    for row, (begin, length) in enumerate(zip(begins, case.lengths, strict=True)):
        targets = torch.randint(case.n_columns, (length,), generator=generator)
        targets[::2] = few[torch.randint(3, (len(targets[::2]),), generator=generator)]
        labels_BT[row, begin : begin + length] = targets
        mask_BT[row, begin + max(1, length) :] = 0
    return labels_BT, mask_BT, begins


def normal(shape, seed, std=1.0):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(shape, device=DEVICE, generator=generator).mul_(std)


def check_head(report, case, seed):
    labels_BT, mask_BT, begins = head_inputs(case, seed)
    sketch, transform = case.sketch(seed), HeadTransform(case.scale, case.softcap)
    for dtype in (torch.float32, torch.bfloat16):
        hidden_BTD = normal((*labels_BT.shape, case.width), seed).to(dtype)
        std = 2 / (case.scale * math.sqrt(case.width))
        weight_VD = normal((case.n_columns, case.width), seed + 1, std).to(dtype)
        bias_V = normal((case.n_columns,), seed + 2).to(dtype) if case.bias else None
        truths = {}
        for row, (begin, length) in enumerate(zip(begins, case.lengths, strict=True)):
            if length:
                x_nD = hidden_BTD[row, begin - 1 : begin - 1 + length]
                targets_n = labels_BT[row, begin : begin + length].to(DEVICE)
                truths[row] = row_truth(x_nD, weight_VD, bias_V, targets_n, case, sketch)
        for backend, (layout, lay_out) in product(to_check(), LAYOUTS.items()):
            tokens = lay_out(labels_BT, mask_BT).to(DEVICE)
            x_ND = tokens.take(hidden_BTD)
            heads = {layout: HeadProduct(x_ND, weight_VD, bias_V)}
            if layout == "compact" and len(x_ND) * case.n_columns < 2**28:
                z_BTV = F.linear(hidden_BTD, weight_VD, bias_V)
                heads["outputs given"] = HeadOutputs(tokens, x_ND, z_BTV)
            for kind, head in heads.items():
                poison()
                bounded = case.bounded(backend, dtype)
                rows = head_pass(head, tokens, transform, bounded, sketch=sketch).records
                name = f"{case.name()}, {str(dtype)[6:]}, {backend.name}, {kind}"
                report.judge(name, head_errors(rows, case.lengths, truths), ALLOWED[dtype])


def head_errors(rows, lengths, truths):
    errors = []
    for row, (loss, el2n, truth) in truths.items():
        summaries = rows.summaries
        of_row = truth.errors(summaries.values_BS[row], summaries.sketch_BK[row])
        of_row["loss"] = number(abs(rows.loss_B[row] - loss) / loss)
        of_row["el2n"] = number(abs(rows.el2n_B[row] - el2n) / el2n)
        errors.append(of_row)
    is_counted = rows.n_tokens_B.tolist() == list(lengths)
    return {**largest(errors), "n_tokens": 0.0 if is_counted else math.inf}


# 1b. The gradients that training needs, and 1c. the embedding's records.


def check_gradients(report, seed):
    whole = Case(512, 48, (5, 1, 30), bias=True, scale=0.5, softcap=6.0)
    pieces = replace(whole, n_columns=2500, lengths=(5, 1, 8, 16), tokens_at_once=14)
    for case, kind in product((whole, pieces), ("float32", "bfloat16", "autocast")):
        labels_BT, mask_BT, _ = head_inputs(case, seed)
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        shapes = ((*labels_BT.shape, case.width), (case.n_columns, case.width), (case.n_columns,))
        made = [normal(shape, seed + i, 0.5).to(dtype) for i, shape in enumerate(shapes)]
        want = autograd_gradients(case, made, labels_BT.masked_fill(mask_BT == 0, -100))
        made = [tensor.float() for tensor in made] if kind == "autocast" else made
        for backend, (layout, lay_out) in product(to_check(), LAYOUTS.items()):
            tokens = lay_out(labels_BT, mask_BT).to(DEVICE)
            ours = partial(fused_gradients, case, made, tokens, case.bounded(backend, dtype))
            got, recorded = ours(kind, None), ours(kind, case.sketch(seed))
            errors = {name: off(got[name], want[name]) for name in want}
            errors["while recording"] = max(off(recorded[name], got[name]) for name in want)
            name = f"gradients, {case.name()}, {kind}, {backend.name}, {layout}"
            report.judge(name, errors, ALLOWED[dtype])
            if errors["while recording"]:
                report.say(f"note  {name}: not the same to the bit while recording")


def off(got, want):
    return number((got.double() - want.double()).norm() / want.double().norm())


def autograd_gradients(case, made, labels_BT):
    hidden_BTD, weight_VD, bias_V = leaves = [t.double().requires_grad_() for t in made]
    z_NV = F.linear(hidden_BTD[:, :-1].flatten(0, 1), weight_VD, bias_V) * case.scale
    logits_NV = case.softcap * torch.tanh(z_NV / case.softcap)
    loss = F.cross_entropy(logits_NV, labels_BT[:, 1:].flatten().to(DEVICE))
    gradients = torch.autograd.grad(loss, leaves)
    return dict(zip(("hidden", "weight", "bias"), gradients, strict=True), loss=loss.detach())


def fused_gradients(case, made, tokens, backend, kind, sketch):
    hidden_BTD, weight_VD, bias_V = leaves = [nn.Parameter(t.clone()) for t in made]
    head = nn.Linear(1, 1)
    head.weight, head.bias = weight_VD, bias_V
    fused = FusedHead(HeadTransform(case.scale, case.softcap))
    fused.backend, fused.sketch = backend, sketch
    fused.on_forward = None if sketch is None else lambda *seen: None
    poison()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=kind == "autocast"):
        loss = -fused(hidden_BTD, head, tokens).sum() / sum(case.lengths)
    poison()
    gradients = torch.autograd.grad(loss, leaves)
    return dict(zip(("hidden", "weight", "bias"), gradients, strict=True), loss=loss.detach())


def check_embedding(report, seed):
    for n_rows, width, n_positions, padding_idx in ((97, 24, 60, 3), (3, 20, 40, None)):
        sketch = Case(n_rows, width, sketch_size=64).sketch(seed)
        generator = torch.Generator().manual_seed(seed)
        tokens_BT = torch.randint(n_rows, (5, n_positions), generator=generator).to(DEVICE)
        tokens_BT[0] = 1  # One token only; with 3 rows of the table, the others use them all.
        for dtype in ALLOWED:
            delta_BTD = normal((5, n_positions, width), seed).to(dtype)
            poison()
            rows_P = torch.arange(5, device=DEVICE).repeat_interleave(n_positions)
            got = embedding_summaries(
                tokens_BT.flatten(), rows_P, delta_BTD.flatten(0, 1), 5, n_rows, sketch, padding_idx
            )
            errors = []
            for row in range(5):
                gradient_VD = torch.zeros(n_rows, width, dtype=torch.float64, device=DEVICE)
                gradient_VD.index_add_(0, tokens_BT[row], delta_BTD[row].double())
                if padding_idx is not None:
                    gradient_VD[padding_idx] = 0
                truth = Truth(sketch, width)
                truth.add(gradient_VD, 0)
                errors.append(truth.errors(got.values_BS[row], got.sketch_BK[row]))
            name = f"embedding, V={n_rows}, padding_idx {padding_idx}, {str(dtype)[6:]}"
            # In both it sums up in float32, what it is given counts as exact.
            report.judge(name, largest(errors), ALLOWED[torch.float32])


# Models, trainers and steps for what follows.


@dataclass(frozen=True)
class Shape:
    n_columns: int
    width: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    batch: int
    length: int = 512
    lora: bool = False
    bf16: bool = True
    four_bit: bool = False


SHAPES = {
    "135m": Shape(49_152, 576, 30, 1536, 9, 3, batch=16),
    "1b": Shape(128_256, 2048, 16, 8192, 32, 8, batch=8),
    "7b-lora-32k": Shape(32_000, 4096, 32, 11_008, 32, 32, batch=8, lora=True),
    "7b-lora-152k": Shape(152_064, 3584, 28, 18_944, 28, 4, batch=8, lora=True),
    "7b-qlora-32k": Shape(32_000, 4096, 32, 11_008, 32, 32, batch=8, lora=True, four_bit=True),
}
SMALL = Shape(512, 64, 2, 128, 4, 2, batch=4, length=128 if CUDA else 24)


def tiny(shape):
    kind = {"lora": shape.lora, "four_bit": shape.four_bit}
    return replace(SMALL, n_columns=shape.n_columns // 64, **kind, batch=2, length=32)


def tokenizer():
    folder = Path(__file__).parents[1] / ".gpu" / "part1"
    if (folder / "tokenizer.json").exists():
        return AutoTokenizer.from_pretrained(folder)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = {word: at for at, word in enumerate(special.values())}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def in_four_bits(model):
    """As canonical QLoRA loads a model: nf4, twice quantised, all linear layers but the head."""
    from transformers import BitsAndBytesConfig
    from transformers.integrations import replace_with_bnb_linear
    from transformers.quantizers import AutoHfQuantizer

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    weights = {name: p.detach().cpu() for name, p in model.named_parameters() if p.dim() == 2}
    model = replace_with_bnb_linear(model, ["lm_head"], config)
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            import bitsandbytes

            weight = bitsandbytes.nn.Params4bit(
                weights[f"{name}.weight"], requires_grad=False, quant_type="nf4",
                compress_statistics=True,
            )  # fmt: skip
            module.weight = weight.to(DEVICE)
    model.config.quantization_config = config
    model.is_loaded_in_4bit = model.is_quantized = True
    model.quantization_method = config.quant_method
    model.hf_quantizer = AutoHfQuantizer.from_config(config)
    return model.to(DEVICE)


def trainer_of(shape, n_rows, *, seed=0, shortest=1.0, batching="random"):
    """Built where it is used, with trl's defaults for a GPU; every row is half response."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.n_columns, hidden_size=shape.width, num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, max_position_embeddings=2048, initializer_range=0.02,
        tie_word_embeddings=not shape.lora, bos_token_id=1, eos_token_id=2, pad_token_id=None,
    )  # fmt: skip
    with DEVICE:
        dtype = torch.bfloat16 if shape.lora else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = in_four_bits(model) if shape.four_bit else model
    rng, rows = random.Random(seed), []
    for row in range(n_rows):
        length = rng.randint(int(shortest * shape.length), shape.length)
        ids = [rng.randrange(6, shape.n_columns) for _ in range(length)]
        rows.append(Instance(f"r{row}", ids, [-100] * (length // 2) + ids[length // 2 :]))
    sft = {"per_device_train_batch_size": shape.batch, "bf16": shape.bf16}
    settings = TrainerSettings(
        {**sft, "gradient_checkpointing": True}, {} if shape.lora else None, 0, batching=batching
    )
    return RecordingSFTTrainer(model, tokenizer(), rows, settings, Path(tempfile.mkdtemp()))


TRL, PLAIN, FUSED = "trl's own", "not recording", "recording, fused"
HOOKED, SCORING = "recording, hooked", "scoring"
WAYS = (TRL, PLAIN, FUSED, HOOKED, SCORING)


class Steps:
    """Training steps, each way; micro-batches are on the device before anything is measured."""

    def __init__(self, trainer):
        self.trainer, methods = trainer, {FUSED: "fused", HOOKED: "hooked", SCORING: "fused"}
        self.recorders = {w: recorder_for(trainer, p, SketchSpec()) for w, p in methods.items()}
        # As `train` does it: autocast around the forward pass only, so `finish` is outside.
        trainer.accelerator.prepare_model(trainer.model)
        trainer.model.train()

    def batch(self, at, order=None):
        trainer, size = self.trainer, self.trainer.args.per_device_train_batch_size
        places = range(at * size, (at + 1) * size)
        rows = [trainer.train_dataset[row if order is None else order[row]] for row in places]
        batch = trainer.data_collator(rows)
        indices = batch.pop(INDEX_COLUMN)
        return {**trainer._prepare_inputs(batch), INDEX_COLUMN: indices}

    def run(self, way, batch):
        """One step without its update; returns what was recorded."""
        trainer, recorder, seen = self.trainer, self.recorders.get(way), []
        trainer.use_fused_head(way != HOOKED)
        if way == SCORING:
            collator, trainer.data_collator = trainer.data_collator, lambda rows: dict(batch)
            try:
                return trainer.forward_records(batch[INDEX_COLUMN], recorder, range(2**31))
            finally:
                trainer.data_collator = collator
        n_items = (batch["labels"][:, 1:] != -100).sum()
        if way == TRL:
            trainer.compute_loss = lambda model, inputs, **others: SFTTrainer.compute_loss(
                trainer, model, {k: v for k, v in inputs.items() if k != TOKENS}, **others
            )
            inputs = {k: v for k, v in batch.items() if k != INDEX_COLUMN}
            try:  # With cuDNN's attention, where it is PyTorch's choice.
                SFTTrainer.training_step(trainer, trainer.model, inputs, n_items)
            finally:
                del trainer.compute_loss
            return None
        if recorder is not None:
            trainer.record_with(recorder, seen.append)
        try:
            with recorder or nullcontext():
                trainer.training_step(trainer.model, dict(batch), n_items)
        finally:
            trainer.stop_recording()
        return seen[0] if seen else None

    def clear(self):
        self.trainer.model.zero_grad(set_to_none=True)
        self.trainer.forget_metrics()


# 1d. Whole self-checks.


def check_trainer(report, bf16, seed):
    trainer = trainer_of(replace(SMALL, bf16=bf16), 16, seed=seed, shortest=0.3)
    default = backends_for(trainer.args.device, torch.float32)[0]
    others = [backend for backend in to_check() if backend != default]
    for method, backward in product(METHODS, (True, False)):
        kind = f"self-check, bf16={bf16}{'' if backward else ', forward only'}"
        exact = partial(first_exact_method, trainer, SketchSpec())
        results = [exact(method=method, backward=backward)[1]]
        if results[0].tried:
            report.wrong(f"{kind}, the default is not exact: {results[0].tried}")
        for backend in others:
            recorder = recorder_for(trainer, method, SketchSpec(), backend)
            results.append(self_check(trainer, recorder, backward=backward))
        for result in results:
            report.say(f"ok    {kind}: {result.sentence()}")
            report.found["checks"].append({"name": kind, **vars(result)})


# 1e. What waits for the device, and how many kernels there are.


def waits_of(step):
    """Return by which code the host waited: the innermost frame of a package that is known."""
    homes = {name: str(Path(importlib.util.find_spec(name).origin).parent) for name in PACKAGES}
    places = Counter()

    def note(message, *others):
        if "synchroniz" in str(message):
            frames = traceback.extract_stack()[::-1]
            known = ((f, n) for f in frames for n, h in homes.items() if f.filename.startswith(h))
            frame, name = next(known, (frames[1], "elsewhere"))
            places[f"{name} {Path(frame.filename).name}:{frame.lineno} {frame.name}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return places


def device_events(step):
    synchronize()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        step()
        synchronize()
    return [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]


def kernels_of(step):
    return sum(not e.name.startswith(("Memcpy", "Memset")) for e in device_events(step))


def dearest_kernels(step, n=12):
    """Milliseconds the device was busy, and its kernels, the dearest first."""
    spent, times = Counter(), Counter()
    for event in device_events(step):
        spent[event.name[:90]] += event.device_time / 1000
        times[event.name[:90]] += 1
    dearest = [[name, times[name], ms] for name, ms in spent.most_common(n)]
    return {"busy": spent.total(), "kernels": times.total(), "dearest": dearest}


def count_waits(report, n_columns, n_rows, seed):
    trainer = trainer_of(replace(SMALL, n_columns=n_columns, batch=n_rows), n_rows, seed=seed)
    steps = Steps(trainer)
    batch = steps.batch(0)
    for way in WAYS:
        counts = []
        # Twice before it counts: kernels are compiled, and caches filled.
        for count in (lambda step: step(), lambda step: step(), waits_of, kernels_of):
            counts.append(count(partial(steps.run, way, batch)))
            steps.clear()
        *_, places, kernels = counts
        ours = sum(n for place, n in places.items() if place.startswith("gradsift "))
        report.say(
            f"V={n_columns}, {n_rows} rows, {way}: waits {ours} times in gradsift, "
            f"{places.total() - ours} times elsewhere; {kernels} kernels"
        )
        for place, n in places.most_common():
            print(f"            {n} × {place}")
        numbers = {"V": n_columns, "rows": n_rows, "kernels": kernels}
        report.found["waits"].append({"way": way, **numbers, "places": places})


# 2. Speed.


def measure(report, name, shape, repeats):
    steps = Steps(trainer_of(shape, shape.batch * (repeats + 2)))
    report.say(f"{name}: built")
    seconds, peaks = {way: [] for way in WAYS}, dict.fromkeys(WAYS, 0)
    reads = {FUSED: [], HOOKED: []}
    for repeat in range(repeats + 2):
        batch, first = steps.batch(repeat), repeat % len(WAYS)
        # Another one goes first each time, so that drift of the machine falls on all.
        for way in WAYS[first:] + WAYS[:first]:
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            synchronize()
            started = time.perf_counter()
            records = steps.run(way, batch)
            synchronize()
            seconds[way].append(time.perf_counter() - started)
            if repeat >= 2 and CUDA:
                peaks[way] = max(peaks[way], torch.cuda.max_memory_allocated())
            if way in reads:
                started = time.perf_counter()
                records.read()
                reads[way].append(time.perf_counter() - started)
            del records
            steps.clear()
    said = {"shape": vars(shape), "seconds": seconds, "reads": reads, "peaks": peaks}
    report.found["speed"][name] = said
    tabulate(report, name, shape, said)
    said["profile"] = profile = {}
    for way in WAYS if CUDA else ():
        profile[way] = found = dearest_kernels(partial(steps.run, way, batch))
        steps.clear()
        print(f"    {way}: device busy {found['busy']:.1f} ms in {found['kernels']} kernels:")
        for kernel, times, spent in found["dearest"] if way in (PLAIN, FUSED, SCORING) else ():
            print(f"        {spent:8.2f} ms  {times:5} × {kernel}")


def tabulate(report, name, shape, said):
    firsts = ", ".join(f"{way} {values[0]:.1f}" for way, values in said["seconds"].items())
    seconds = {way: values[2:] for way, values in said["seconds"].items()}  # Two are warm-ups.
    report.say(f"{name}: trl's own step {1000 * median(seconds[TRL]):.1f} ms (first steps, in s: "
               f"{firsts})")  # fmt: skip
    goals = {FUSED: 1.05, PLAIN: 1.0, SCORING: 0.30 if shape.lora else 0.35}

    def ratios(values):
        return [value / own for value, own in zip(values, seconds[TRL], strict=True)]

    def verdict(value, goal):
        return "" if goal is None else f"{goal:.2f} {'met' if value <= goal else 'MISSED'}"

    print(f"    {'step / trl-own':20}  median    min    max  goal          peak  goal")
    for way in WAYS:
        values, peak, line = ratios(seconds[way]), "skipped: no CUDA", f"    {way:20}"
        if CUDA:
            share = said["peaks"][way] / said["peaks"][TRL]
            peak = f"{share:6.3f}  {verdict(share, 1.02 if way in goals else None):12}"
            peak += f"{said['peaks'][way] / 1e9:.2f} GB"
        line += f"  {median(values):6.3f} {min(values):6.3f} {max(values):6.3f}"
        print(f"{line}  {verdict(median(values), goals.get(way)):12}{peak}")
    for way, values in said["reads"].items():
        both = [step + read for step, read in zip(seconds[way], values[2:], strict=True)]
        print(
            f"    {way}, with its records read (outside the step; the product reads those of 32 "
            f"steps at once): {median(ratios(both)):.3f}, read {1000 * median(values[2:]):.2f} ms"
        )


# 3. Rows of real lengths: padded, grouped and packed.

TRL_PADDED = "trl's own, padded"
# How a batch is made, whether its rows are of like lengths, what its length is a multiple of.
BATCHED_AS = {
    TRL_PADDED: (TRL, "random", 1),
    "recording, padded": (FUSED, "random", 1),
    "recording, by length": (FUSED, "by_length", 1),
    "recording, packed": (FUSED, "packed", 1),
    "recording, packed to 64s": (FUSED, "packed", 64),
}


def measure_packing(report, name, shape, repeats):
    n_batches = 4 * repeats
    trainer = trainer_of(shape, shape.batch * n_batches, shortest=0.05, batching="packed")
    steps, n_rows = Steps(trainer), shape.batch * n_batches
    by_length = sorted(range(n_rows), key=lambda row: len(trainer.train_dataset[row]["input_ids"]))
    of_window = [by_length[at : at + shape.batch] for at in range(0, n_rows, shape.batch)]
    random.Random(0).shuffle(of_window)
    orders = {"by_length": [row for batch in of_window for row in batch]}
    seconds, computed = {way: [] for way in BATCHED_AS}, {way: [] for way in BATCHED_AS}
    said = {"seconds": seconds, "computed": computed, "profile": {}}
    report.found["packing"][name] = said
    for at in range(n_batches):
        for way, (how, batching, multiple) in BATCHED_AS.items():
            trainer.data_collator.packs = batching == "packed"
            trainer.data_collator.multiple = multiple
            batch = steps.batch(at, orders.get(batching))
            computed[way].append(batch["input_ids"].numel())
            synchronize()
            started = time.perf_counter()
            steps.run(how, batch)
            synchronize()
            seconds[way].append(time.perf_counter() - started)
            steps.clear()
            if CUDA and at == n_batches - 1:
                said["profile"][way] = dearest_kernels(partial(steps.run, how, batch))
                steps.clear()
    # Half of the batches are warm-up; a shape that has not been there before still costs its own.
    own = sum(seconds[TRL_PADDED][repeats * 2 :])
    for way, values in seconds.items():
        line = f"    {name}: {way:25} {sum(values[repeats * 2 :]) / own:.3f} of trl's padded steps"
        line += f" ({1000 * median(values[repeats * 2 :]):.0f} ms, {sum(computed[way])} tokens"
        busy = said["profile"].get(way)
        print(line + (f"; the last busy {busy['busy']:.0f} ms)" if busy else ")"))


def about():
    def git(*command):
        command = ["git", "-C", str(Path(__file__).parents[1]), *command]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return ""

    packages = [p for p in ("torch", "triton", *PACKAGES[1:]) if importlib.util.find_spec(p)]
    return {
        "device": torch.cuda.get_device_name() if CUDA else "CPU",
        "versions": {name: importlib.import_module(name).__version__ for name in packages},
        "python": platform.python_version(),
        "gradsift": str(Path(gradsift.__file__).parent),
        "commit": git("rev-parse", "HEAD").strip() or None,
        "files_changed": len(git("status", "--porcelain").splitlines()),
        "interpreted": INTERPRETED,
    }


def heads(report, arguments, seed):
    for at, case in enumerate(TINY_CASES if arguments.tiny else CASES):
        report.attempt(f"the head, {case.name()}", check_head, case, seed + at)


def trainers(report, _, seed):
    for bf16 in (True, False):
        report.attempt(f"self-checks, bf16={bf16}", check_trainer, bf16, seed)


def waits(report, _, seed):
    for n_columns, n_rows in product((512, 16_384), (4, 16)) if CUDA else ():
        report.attempt("waits and kernels", count_waits, n_columns, n_rows, seed)
    if not CUDA:
        report.say("waits and kernels: skipped: no CUDA")


def shapes_of(report, arguments):
    for name in arguments.shapes.split(","):
        shape = tiny(SHAPES[name]) if arguments.tiny else SHAPES[name]
        if shape.four_bit and importlib.util.find_spec("bitsandbytes") is None:
            report.say(f"{name}: skipped: no bitsandbytes")
        else:
            yield name, shape


def speed(report, arguments, _):
    for name, shape in shapes_of(report, arguments):
        report.attempt(f"speed, {name}", measure, name, shape, arguments.repeats)


def packing(report, arguments, _):
    for name, shape in shapes_of(report, arguments):
        if name in ("135m", "7b-lora-32k"):
            report.attempt(f"packing, {name}", measure_packing, name, shape, arguments.repeats)


SECTIONS = {
    "head": heads,
    "gradients": lambda report, _, seed: report.attempt("gradients", check_gradients, seed),
    "embedding": lambda report, _, seed: report.attempt("embedding", check_embedding, seed),
    "self-checks": trainers,
    "waits": waits,
    "speed": speed,
    "packing": packing,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=".gpu/out")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**20))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a try without a GPU")
    arguments = parser.parse_args()
    if not CUDA and not arguments.tiny:
        parser.error("there is no CUDA device: try it with --tiny")
    if not CUDA:
        torch.set_num_threads(1)  # Threads that wait for each other on a shared CPU are slower.
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    report, seed = Report(arguments.out), arguments.seed
    report.found["about"] = {**about(), "arguments": vars(arguments)}
    report.say(json.dumps(report.found["about"]))
    sections = arguments.sections.split(",")
    if unknown := sorted(set(sections) - set(SECTIONS)):
        parser.error(f"no such section: {unknown}")
    if CUDA and TRITON not in to_check():
        report.wrong("Triton's kernels do not run on this device")
    for section in sections:
        SECTIONS[section](report, arguments, seed)
    wrong = report.found["wrong"]
    report.say("\n  ".join([f"{len(wrong)} wrong", *wrong]))
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
