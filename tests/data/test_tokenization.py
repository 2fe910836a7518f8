import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from gradsift.data.example import Chat, Plain
from gradsift.data.tokenization import build_instances
from gradsift.terms import IGNORED_LABEL
from tiny import CHAT_TEMPLATE, CHAT_TEMPLATE_MARKED, tiny_llama, tiny_tokenizer


def chat(*contents, train=None, roles=("user", "assistant")):
    messages = tuple(
        {"role": roles[i % 2], "content": content} for i, content in enumerate(contents)
    )
    default = tuple(message["role"] == "assistant" for message in messages)
    return Chat(messages, default if train is None else train)


def build(example, template=CHAT_TEMPLATE, **options):
    tokenizer = tiny_tokenizer(template)
    return build_instances([("x", example)], tokenizer, **options), tokenizer


def response(result, tokenizer):
    return tokenizer.decode([label for label in result.items[0].labels if label != IGNORED_LABEL])


PROMPTS = [("hi", "yo"), ("what is 1+1?", "two é 中"), ("", "x"), ("a b", " c")]


@pytest.mark.parametrize("kind", ["messages", "text pair", "text"])
def test_instances_are_what_trl_trains_on(tmp_path, kind):
    if kind == "messages":
        rows = [
            {
                "prompt": [{"role": "user", "content": p}],
                "completion": [{"role": "assistant", "content": c}],
            }
            for p, c in PROMPTS
        ]
        examples = [chat(p, c) for p, c in PROMPTS]
    elif kind == "text pair":
        pairs = [(p, c) for p, c in PROMPTS if p] + [("q", "ends itself</s>")]
        rows = [{"prompt": p, "completion": c} for p, c in pairs]
        examples = [Plain(p, c) for p, c in pairs]
    else:
        rows = [{"text": c} for _, c in PROMPTS]
        examples = [Plain("", c) for _, c in PROMPTS]
    tokenizer = tiny_tokenizer()
    args = SFTConfig(output_dir=str(tmp_path), bf16=False, report_to="none", max_length=None)
    trl = SFTTrainer(
        model=tiny_llama(),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    ).train_dataset
    ours = build_instances([(str(i), e) for i, e in enumerate(examples)], tokenizer)
    assert [item.input_ids for item in ours.items] == list(trl["input_ids"])
    assert [item.labels for item in ours.items] == list(trl["labels"])


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHAT_TEMPLATE_MARKED])
def test_all_trained_turns_are_the_response(template):
    result, tokenizer = build(chat("hi", "yo", "more", "end"), template)
    assert response(result, tokenizer) == "yo</s>end</s>"


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHAT_TEMPLATE_MARKED])
def test_turns_that_are_not_trained_on_are_masked(template):
    example = chat("hi", "yo", "more", "end", train=(False, False, False, True))
    result, tokenizer = build(example, template)
    assert response(result, tokenizer) == "end</s>"


def test_a_prompt_that_is_no_prefix_is_counted():
    # Rendered alone, the prompt ends in a thought block that the whole conversation does not have.
    template = CHAT_TEMPLATE.replace("'<|assistant|>' }}{% endif", "'<|assistant|>zz' }}{% endif")
    result, tokenizer = build(chat("hi", "yo"), template)
    assert result.notes["prompt_not_prefix"] == 1
    assert response(result, tokenizer) == "yo</s>"
    assert build(chat("hi", "yo"))[0].notes["prompt_not_prefix"] == 0


# As Qwen3 does: thinking is shown in the last turn only.
THINKING_LAST = CHAT_TEMPLATE.replace(
    "m['content'] +", "(m['content'] if loop.last else m['content'].split('</think>')[-1]) +"
)
# An earlier answer is not shown at all.
ANSWERS_FORGOTTEN = CHAT_TEMPLATE.replace(
    "m['content'] + '</s>'",
    "(m['content'] + '</s>' if loop.last or m['role'] == 'user' else '')",
)


@pytest.mark.parametrize(
    ("template", "trained", "rewritten", "not_found"),
    [
        (CHAT_TEMPLATE, "<think>a</think>yo</s><think>b</think>end</s>", 0, 0),
        (THINKING_LAST, "yo</s><think>b</think>end</s>", 1, 0),
        (ANSWERS_FORGOTTEN, "<think>b</think>end</s>", 1, 1),
    ],
)
def test_turns_that_are_rendered_otherwise_later_are_found_or_counted(
    template, trained, rewritten, not_found
):
    example = chat("hi", "<think>a</think>yo", "more", "<think>b</think>end")
    result, tokenizer = build(example, template)
    assert response(result, tokenizer) == trained
    assert result.notes["turn_rewritten"] == rewritten
    assert result.notes["turn_not_found"] == not_found


@pytest.mark.parametrize("answer", ["yo", "also", " a", ""])
def test_what_a_template_puts_before_a_first_answer_is_not_the_response(answer):
    template = "<|system|>be kind</s>" + CHAT_TEMPLATE
    example = chat(answer, "more", "end", roles=("assistant", "user"))
    result, tokenizer = build(example, template)
    assert response(result, tokenizer) == f"{answer}</s>end</s>"


def test_without_a_template_the_rendering_is_plain_and_counted():
    example = Chat(
        ({"role": "system", "content": "be"}, *chat("hi", "yo").messages), (False, False, True)
    )
    result, tokenizer = build(example, None)
    assert tokenizer.decode(result.items[0].input_ids) == "be\n\nUser: hi\n\nAssistant: yo</s>"
    assert response(result, tokenizer) == "yo</s>"
    assert result.notes["no_chat_template"] == 1


def test_what_a_template_refuses_is_dropped_with_its_words():
    template = (
        "{% if messages|length > 2 %}{{ raise_exception('only two') }}{% endif %}" + CHAT_TEMPLATE
    )
    result, _ = build(chat("hi", "yo", "more", "end"), template)
    assert result.dropped == {"x": ("template_error", "chat template: only two")}


def test_truncation():
    example = chat("abcdef", "uvwxyz")
    whole, _ = build(example)
    n = len(whole.items[0].input_ids)
    start, _ = build(example, max_length=n - 2)
    assert start.items[0].input_ids == whole.items[0].input_ids[:-2]
    assert (start.items[0].truncated, start.notes["truncated"]) == (True, 1)
    end, _ = build(example, max_length=n - 2, truncation="keep_end")
    assert end.items[0].input_ids == whole.items[0].input_ids[2:]
    drop, _ = build(example, max_length=n - 2, truncation="drop")
    assert drop.dropped["x"] == ("too_long", f"{n} tokens, at most {n - 2} are allowed")
    prompt_only, _ = build(example, max_length=5)
    assert prompt_only.dropped["x"][0] == "no_response_token"


def test_the_first_token_has_no_loss():
    """A single trained token in the first place leaves nothing to learn."""
    result, _ = build(Plain("", "</s>"))
    assert result.dropped["x"][0] == "no_response_token"


def test_things_worth_telling_are_counted():
    assert build(chat("hi", "say <|user|> now"))[0].notes["control_tokens_in_text"] == 1
    assert build(chat("hi", "yo"))[0].notes["control_tokens_in_text"] == 0
    assert build(chat("hi", "yo"), "<s><s>" + CHAT_TEMPLATE)[0].notes["double_bos"] == 1


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="vocabulary of 50"):
        build(chat("hi", "yo"), vocab_size=50)


def test_many_examples_keep_their_order():
    examples = [(f"r{i}", chat("q" * (i % 7 + 1), "a" * (i % 5 + 1))) for i in range(1203)]
    result = build_instances(examples, tiny_tokenizer())
    assert [item.instance_id for item in result.items] == [name for name, _ in examples]
    single, _ = build(examples[777][1])
    assert result.items[777].labels == single.items[0].labels
