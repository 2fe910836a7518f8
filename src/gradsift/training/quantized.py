"""Quantised weights: how they are loaded, what they are called, which numbers they stand for."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.quantizers import AutoHfQuantizer

from gradsift.errors import GradsiftError
from gradsift.wording import first_line

INSTALL = "pip install 'gradsift[quantized]'"
BITSANDBYTES = "bitsandbytes"
NEEDS_ADAPTERS = "quantised weights cannot be trained, only adapters over them: add `lora`"


def require_bitsandbytes(what: str) -> None:
    """Refuse what needs bitsandbytes where that is missing."""
    if importlib.util.find_spec(BITSANDBYTES) is None:
        raise GradsiftError(f"{what} needs bitsandbytes, which is not installed: {INSTALL}")


def quantization_for(load_in: str) -> BitsAndBytesConfig:
    """Return how weights are quantised while they are loaded.

    4bit is that of QLoRA (arXiv 2305.14314): nf4, double quantisation, products in bfloat16 where
    an accelerator has it. 8bit is LLM.int8 without its outlier columns: those are found in a whole
    micro-batch, so a row's result would depend on its neighbours.
    """
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_compute_dtype(),
    )


def _compute_dtype() -> torch.dtype:
    if not torch.accelerator.is_available():
        return torch.float32
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    return torch.bfloat16


def method_of(config: PretrainedConfig) -> str | None:
    """Return the method by which a checkpoint's weights are quantised; None if they are not."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    if not isinstance(settings, dict):
        method = settings.quant_method
    elif settings.get("quant_method") is None and {"load_in_4bit", "load_in_8bit"} & set(settings):
        return BITSANDBYTES
    else:
        method = settings.get("quant_method")
    return str(getattr(method, "value", method))


def require_readable(name: str, config: PretrainedConfig) -> None:
    """Refuse a checkpoint whose quantised weights cannot be read here, or not trained over."""
    method = method_of(config)
    if method is None:
        return
    problem = f"{name!r} has weights quantised by {method}"
    if method == BITSANDBYTES:
        require_bitsandbytes(f"{name!r} has weights quantised, and reading them")
    try:
        quantizer = AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True)
        quantizer.validate_environment(device_map=None)
    # Each method asks for its packages and devices in its own way.
    except Exception as error:
        raise GradsiftError(
            f"{problem}, which cannot be read here: {first_line(error)} Install what it asks for, "
            "or take the model's unquantised weights, with `load_in: 4bit` and `lora` to quantise "
            "them."
        ) from error
    if not quantizer.is_trainable:
        raise GradsiftError(
            f"{problem}; transformers trains no adapters over those. Take the model's unquantised "
            "weights, with `load_in: 4bit` and `lora` to quantise them."
        )


def is_quantized(model: nn.Module) -> bool:
    """Return whether a model's weights were quantised when it was loaded."""
    return bool(getattr(model, "is_quantized", False))


def quantization_of(module: nn.Module) -> str | None:
    """Return what a layer's weight is quantised to: "nf4 (bitsandbytes)"; None if it is not."""
    weight = getattr(module, "weight", None)
    kind = type(weight).__name__
    if kind == "Params4bit":
        doubly = ", double quantisation" if weight.compress_statistics else ""
        return f"{weight.quant_type}{doubly} (bitsandbytes)"
    if kind == "Int8Params":
        return "int8 (bitsandbytes)"
    library = type(weight).__module__.split(".")[0]
    if isinstance(weight, torch.Tensor) and hasattr(weight, "qtype"):
        return f"{weight.qtype.name} ({library})"
    if library == "torchao":
        return f"{kind} (torchao)"
    if hasattr(module, "W_q"):
        return "quantised (hqq)"
    if getattr(weight, "is_floating_point", lambda: True)() and not hasattr(module, "qweight"):
        return None
    return f"{type(module).__name__} ({type(module).__module__.split('.')[0]})"


def dense_weight(module: nn.Module) -> torch.Tensor:
    """Return the numbers that a layer's weight stands for, as a plain tensor."""
    quantization = quantization_of(module)
    if quantization is None:
        return module.weight
    with torch.no_grad():
        if quantization.endswith("(bitsandbytes)"):
            return _dense_bitsandbytes(module)
        if hasattr(module, "W_q"):
            return module.dequantize()
        if hasattr(getattr(module, "weight", None), "dequantize"):
            return module.weight.dequantize()
    raise GradsiftError(
        f"the embedding or the head is quantised: {quantization}, which does not offer its weight "
        "as plain numbers. Leave lm_head and the embedding out of the quantisation."
    )


def _dense_bitsandbytes(module: nn.Module) -> torch.Tensor:
    from bitsandbytes import functional

    weight = module.weight
    if type(weight).__name__ == "Params4bit":
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            raise GradsiftError(
                "the head's 4-bit weight was packed anew by bitsandbytes, for evaluation on this "
                "CPU: load the model again, and call model.train() before its first forward pass."
            )
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    # Before the first forward pass the scales are with the weight, later with the module.
    scales = module.state.SCB if weight.SCB is None else weight.SCB
    return functional.int8_vectorwise_dequant(weight.data, scales)


def keep_numbers_in_evaluation(model: nn.Module) -> None:
    """Keep bitsandbytes from rounding 4-bit weights anew when a model is evaluated on a CPU.

    On some CPUs it packs them for faster products in bfloat16, once and for all.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # It says in every product of LLM.int8 that float32 inputs are rounded.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def multiplies_as_dense(module: nn.Module) -> bool:
    """Return whether a layer multiplies by just the numbers that its weight stands for.

    LLM.int8 does not: it rounds its input, too. Of other libraries it is not known.
    """
    return quantization_of(module) is None or type(module.weight).__name__ == "Params4bit"


def coupling_of(model: nn.Module) -> str | None:
    """Say why the rows of a micro-batch influence each other, if quantisation makes them."""
    thresholds = [
        module.state.threshold
        for module in model.modules()
        if type(module._parameters.get("weight")).__name__ == "Int8Params"
        # There a training product is that of the numbers themselves.
        and not (module.training and module.weight.device.type in ("cpu", "xpu"))
    ]
    threshold = max(thresholds, default=0.0)
    if not threshold:
        return None
    return (
        f"bitsandbytes int8 with llm_int8_threshold={threshold:g} treats a column as an outlier if "
        "any token of the micro-batch exceeds it there, so that rows influence each other: the "
        "recorded gradients are those of training, and differ from those of a row alone by up to "
        "some percent. Quantise with llm_int8_threshold=0.0 to switch it off, as `load_in: 8bit` "
        "does."
    )


def n_parameters(model: nn.Module) -> int:
    """Return the number of a model's parameters, those packed into fewer entries unpacked."""
    return sum(_n_numbers(parameter) for parameter in model.parameters())


def _n_numbers(parameter: torch.Tensor) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else torch.Size(state.shape).numel()


def weights_of(model: nn.Module) -> str:
    """Say how a model's weights are quantised, such as "nf4 (bitsandbytes)", or their dtype.

    What is trained over quantised weights (adapters) does not count; the dtype is that of most.
    """
    n_entries: Counter[str] = Counter()
    quantised: dict[str, None] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            n_entries[weight_of(module)] += weight.numel()
            if (quantization := quantization_of(module)) is not None:
                quantised[quantization] = None
    return " and ".join(quantised) or n_entries.most_common(1)[0][0]


def weight_of(module: nn.Module) -> str:
    """Return as what a layer's weight is held: a dtype, or a quantisation."""
    return quantization_of(module) or str(module.weight.dtype).removeprefix("torch.")
