"""Whether a tokenizer's own template is the named one, told by what it writes."""

import pytest

from gradsift.data.chat_templates import CHAT_FORMATS, TOKENIZER_DEFAULT, require_template
from tiny import tiny_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Qwen, created by "
    "Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}{% else %}"
    "{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else "
    "m['role']) + '\n' + (first if loop.first else '') + m['content'] + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Shows the thinking of the last turn only, as hybrid models' templates do.
THINKING = CHATML.replace(
    "m['content'] + '<|im_end|>",
    "('<think>\n\n</think>\n\n' if loop.last and m['role'] == 'assistant' else '') + m['content'] "
    "+ '<|im_end|>",
)
WRITTEN = {"chatml": CHATML, "qwen": QWEN, "llama3": LLAMA3, "gemma": GEMMA}


@pytest.mark.parametrize("named", CHAT_FORMATS)
@pytest.mark.parametrize("written", WRITTEN)
def test_only_the_same_text_is_the_same_template(written, named):
    tokenizer = tiny_tokenizer(WRITTEN[written])
    if named == written:
        require_template(tokenizer, named)
        return
    with pytest.raises(ValueError, match=f"`chat_template` is '{named}', which writes"):
        require_template(tokenizer, named)


def test_what_shows_only_in_the_last_turn_or_fails_is_another_template():
    with pytest.raises(ValueError, match="think"):
        require_template(tiny_tokenizer(THINKING), "chatml")
    fails = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(ValueError, match=r"an error \(no system\)"):
        require_template(tiny_tokenizer(fails + CHATML), "chatml")


def test_its_own_is_whatever_is_there():
    require_template(tiny_tokenizer(LLAMA3), TOKENIZER_DEFAULT)
    with pytest.raises(ValueError, match="the tokenizer has none"):
        require_template(tiny_tokenizer(None), TOKENIZER_DEFAULT)
    with pytest.raises(ValueError, match="known are tokenizer_default, chatml"):
        require_template(tiny_tokenizer(CHATML), "vicuna")
