"""eos_token, pad_token and chat_template_path: as trl sets them, before rows are rendered."""

import pytest
from trl import SFTConfig, SFTTrainer

from gradsift.data.example import Chat, Plain
from gradsift.data.tokenization import Instance, build_instances
from gradsift.errors import GradsiftError
from gradsift.training.batches import as_dataset
from gradsift.training.model import find_model, load_tokenizer
from gradsift.training.settings.tokenizer import set_up_tokenizer
from gradsift.training.settings.trainer import TrainerSettings
from gradsift.training.trainer import RecordingSFTTrainer
from tiny import CHAT_TEMPLATE, save_tiny, tiny_llama, tiny_tokenizer

OTHER_TEMPLATE = CHAT_TEMPLATE.replace("'</s>'", "'<|system|>'")
ROWS = [Instance("a", [6, 7, 8], [-100, 7, 8])]
CHAT = Chat(
    ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}),
    (False, True),
    None,
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("templates")
    (folder / "other.jinja").write_text(OTHER_TEMPLATE)
    (folder / "other.txt").write_text(OTHER_TEMPLATE)
    (folder / "latin.jinja").write_bytes(b"\xe4")
    source = tiny_tokenizer(OTHER_TEMPLATE)
    source.eos_token = "<|system|>"
    source.save_pretrained(folder / "model")
    source.add_tokens(["<new>"])
    source.save_pretrained(folder / "more")
    tiny_tokenizer(None).save_pretrained(folder / "none")
    return folder


def changed(sft):
    tokenizer = tiny_tokenizer()
    set_up_tokenizer(tokenizer, sft)
    return tokenizer


def as_trl_has_it(sft, tmp_path):
    trainer = SFTTrainer(
        model=tiny_llama(vocab_size=320),
        args=SFTConfig(str(tmp_path), bf16=False, report_to="none", max_length=None, **sft),
        train_dataset=as_dataset(ROWS),
        processing_class=tiny_tokenizer(),
    )
    return trainer


@pytest.mark.parametrize(
    "sft",
    [
        {"eos_token": "<|user|>"},
        {"pad_token": "<|system|>"},
        {"chat_template_path": "other.jinja"},
        {"chat_template_path": "model"},
        {"chat_template_path": "model", "eos_token": "<|user|>"},
    ],
)
def test_tokenizer_and_model_are_as_in_trl(places, tmp_path, sft):
    if "chat_template_path" in sft:
        sft = {**sft, "chat_template_path": str(places / sft["chat_template_path"])}
    theirs, tokenizer = as_trl_has_it(sft, tmp_path), changed(sft)
    ours = RecordingSFTTrainer(
        tiny_llama(), tokenizer, ROWS, TrainerSettings(sft, None, 0), tmp_path
    )
    for name in ("eos_token", "pad_token", "chat_template"):
        assert getattr(tokenizer, name) == getattr(theirs.processing_class, name), name
    for name in ("eos_token_id", "pad_token_id"):
        assert getattr(ours.model.config, name) == getattr(theirs.model.config, name), name
    generation = ours.model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (generation if isinstance(generation, list) else [generation])
    # And the embedding is the model's own.
    assert ours.model.get_input_embeddings().num_embeddings == 262


@pytest.mark.parametrize(
    ("sft", "example"),
    [
        ({"eos_token": "<|user|>"}, Plain("q", "a")),
        ({"chat_template_path": "other.jinja"}, CHAT),
        ({"chat_template_path": "model"}, CHAT),
        ({"chat_template_path": "model"}, Plain("q", "a")),
    ],
)
def test_rows_are_rendered_by_it(places, sft, example):
    sft = {k: str(places / v) if k == "chat_template_path" else v for k, v in sft.items()}
    (plain,) = build_instances([("a", example)], tiny_tokenizer()).items
    (other,) = build_instances([("a", example)], changed(sft)).items
    assert plain.input_ids != other.input_ids
    assert other.input_ids[-1] in (3, 5)


@pytest.mark.parametrize(
    ("sft", "message"),
    [
        ({"eos_token": "<nope>"}, "eos_token is '<nope>', which is no token of .* '</s>'"),
        ({"pad_token": 3}, "pad_token is 3, expected text"),
        ({"chat_template_path": "missing.jinja"}, "missing.jinja cannot be read"),
        ({"chat_template_path": "latin.jinja"}, "latin.jinja cannot be read"),
        ({"chat_template_path": "other.txt"}, "is a file, expected one that ends in .jinja"),
        ({"chat_template_path": "missing"}, "missing: no chat template is there"),
        ({"chat_template_path": "none"}, "none: no chat template is there"),
        ({"chat_template_path": "more"}, "1 tokens that the model does not have ..'<new>'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(places, sft, message):
    sft = {k: str(places / v) if k == "chat_template_path" else v for k, v in sft.items()}
    with pytest.raises(GradsiftError, match=message) as caught:
        changed(sft)
    assert "\n" not in str(caught.value)


def test_a_models_tokenizer_is_loaded_so(places, tmp_path):
    model = save_tiny(tmp_path / "model")
    sft = {"chat_template_path": str(places / "other.jinja")}
    assert load_tokenizer(find_model(model), sft).chat_template == OTHER_TEMPLATE
    assert load_tokenizer(find_model(model)).chat_template == CHAT_TEMPLATE
