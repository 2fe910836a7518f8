from dataclasses import replace
from datetime import date

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from gradsift.data import responses
from gradsift.data.example import Chat, Plain
from gradsift.data.tokenization import build_instances
from gradsift.errors import GradsiftError
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
    with pytest.raises(ValueError, match=r"embedding has 50 rows: 1 of 1 rows"):
        build(chat("hi", "yo"), vocab_size=50)


def test_many_examples_keep_their_order():
    examples = [(f"r{i}", chat("q" * (i % 7 + 1), "a" * (i % 5 + 1))) for i in range(1203)]
    result = build_instances(examples, tiny_tokenizer())
    assert [item.instance_id for item in result.items] == [name for name, _ in examples]
    single, _ = build(examples[777][1])
    assert result.items[777].labels == single.items[0].labels


KWARGS_TEMPLATE = "{{ mode | default('none') }}|" + CHAT_TEMPLATE


def test_a_template_is_given_what_the_row_says_else_what_is_said_for_all():
    def whole(example, **options):
        result, tokenizer = build(example, KWARGS_TEMPLATE, **options)
        return tokenizer.decode(result.items[0].input_ids).split("|")[0]

    of_the_row = replace(chat("hi", "yo"), template_kwargs={"mode": "high"})
    assert whole(chat("hi", "yo")) == "none"
    assert whole(chat("hi", "yo"), template_kwargs={"mode": "low"}) == "low"
    assert whole(of_the_row, template_kwargs={"mode": "low"}) == "high"


@pytest.mark.parametrize("marks", [False, True])
def test_a_template_that_asks_for_the_time_gets_the_same_every_day(marks):
    dated = "{{ strftime_now('%d %b %Y, %A, %H:%M:%S, 100%') }}|"
    template = dated + (CHAT_TEMPLATE_MARKED if marks else CHAT_TEMPLATE)
    result, tokenizer = build(chat("hi", "yo"), template, template_date=date(2024, 2, 3))
    whole = tokenizer.decode(result.items[0].input_ids)
    assert whole.startswith("03 Feb 2024, Saturday, 00:00:00, 100%|<|user|>")
    assert response(result, tokenizer) == "yo</s>"
    today, _ = build(chat("hi", "yo"), template)
    assert today.items != result.items


LONG = " ".join(f"word{i}" for i in range(3_000))
LONG_EXAMPLES = {
    "a long answer": chat("hi", LONG),
    "a long question": chat(LONG, "yo"),
    "long turns": chat("hi", "yo " + LONG, LONG, "end", train=(False, False, False, True)),
    "a long text": Plain("", LONG),
    "a long prompt": Plain(LONG, "yo"),
    "a long completion": Plain("hi", LONG),
}


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHAT_TEMPLATE_MARKED])
@pytest.mark.parametrize("truncation", ["keep_start", "keep_end", "drop"])
@pytest.mark.parametrize("kind", LONG_EXAMPLES)
def test_of_a_long_text_the_part_that_stays_has_the_tokens_of_the_whole(
    monkeypatch, kind, truncation, template
):
    options = {"max_length": 40, "truncation": truncation}
    part, _ = build(LONG_EXAMPLES[kind], template, **options)
    tokenized = []
    monkeypatch.setattr(responses.Labeller, "_part", lambda self, plan: tokenized.append(plan))
    whole, _ = build(LONG_EXAMPLES[kind], template, **options)
    assert tokenized
    assert part.items == whole.items
    assert [reason for reason, _ in part.dropped.values()] == [r for r, _ in whole.dropped.values()]


def test_little_more_than_what_stays_of_a_long_text_is_tokenized(monkeypatch):
    lengths = []
    tokenizer = tiny_tokenizer()
    call = type(tokenizer).__call__

    def counted(self, texts, **options):
        lengths.extend([len(texts)] if isinstance(texts, str) else map(len, texts))
        return call(self, texts, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    build_instances([("x", chat("hi", LONG))], tokenizer, max_length=40)
    assert len(lengths) == 1
    assert lengths[0] < len(LONG) / 10


TOOL_CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHAT_TEMPLATE_MARKED, None])
def test_a_target_that_is_not_rendered_drops_the_row(template):
    calling = Chat(
        ({"role": "user", "content": "hi"},
         {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}),
        (False, True),
    )  # fmt: skip
    result, _ = build(calling, template)
    assert result.dropped["x"] == (
        "target_not_rendered", "turn 1: the call of f is not in the rendered text",
    )  # fmt: skip
    before = replace(
        calling,
        messages=(*calling.messages, *chat("so", "yo").messages),
        train=(False,) * 3 + (True,),
    )
    result, _ = build(before, template)
    assert result.notes["prompt_not_prefix"] == 0
    assert result.notes["prompt_not_rendered"] == 1
    assert result.first["prompt_not_rendered"] == "x"
    assert "with a turn before the answer" in "\n".join(result.lines())


SHORTENED = CHAT_TEMPLATE.replace("m['content']", "m['content'][:60]")


def test_an_answer_that_is_shown_in_part_is_noted_and_thinking_that_is_not():
    lines = "\n".join(f"this is line {i} of the answer, and it goes on" for i in range(5))
    assert build(chat("hi", lines), SHORTENED)[0].notes["answer_rewritten"] == 1
    assert build(chat("hi", lines))[0].notes["answer_rewritten"] == 0
    thinking = chat("hi", "yo")
    thinking.messages[1]["reasoning"] = "hm, hm"
    assert build(thinking)[0].notes["thinking_not_rendered"] == 1
    assert build(chat("hi", "<think>hm, hm</think>yo"))[0].notes["thinking_not_rendered"] == 0


def test_templates_that_take_parts_or_text_get_them():
    parts = CHAT_TEMPLATE.replace("m['content']", "m['content'][0]['text']")
    result, tokenizer = build(chat("hi", "yo"), parts)
    assert response(result, tokenizer) == "yo</s>"
    calls = "{{ m['tool_calls'][0]['function']['arguments'] }}"
    as_text = CHAT_TEMPLATE.replace(
        "{% endfor", "{% if m.tool_calls %}" + calls + "{% endif %}{% endfor"
    )
    as_json = as_text.replace("arguments'] }}", "arguments'] | tojson }}")
    example = Chat(
        ({"role": "user", "content": "hi"},
         {"role": "assistant", "content": "f", "tool_calls": [TOOL_CALL]}),
        (False, True),
    )  # fmt: skip
    for template in (as_text, as_json):
        result, tokenizer = build(example, template)
        assert response(result, tokenizer) == 'f</s>{"a": "b"}'


@pytest.mark.parametrize(
    "change",
    ["m['content'] | upper", "' '.join(m['content'].split())", "m['content'] | trim",
     "m['content'] | tojson", "m['content'] | replace(\"'\", \"\\\\'\")"],
)  # fmt: skip
def test_a_template_that_writes_an_answer_in_its_own_way_still_shows_it(change):
    template = CHAT_TEMPLATE.replace("m['content']", f"({change})")
    result, _ = build(chat("hi", ' it\'s  a "word" '), template)
    assert not result.dropped


def test_thinking_alone_that_is_not_rendered_leaves_nothing_to_train_on():
    example = chat("hi", "")
    example.messages[1]["reasoning_content"] = "deep"
    assert build(example)[0].dropped["x"][0] == "target_not_rendered"


def test_an_answer_that_begins_as_the_prompt_for_it_does_is_there():
    template = CHAT_TEMPLATE.replace(
        "'<|assistant|>' }}{% endif", "'<|assistant|><think>' }}{% endif"
    )
    result, tokenizer = build(chat("hi", "<b>yo</b>"), template)
    assert not result.dropped
    assert "b>yo</b>" in response(result, tokenizer)


def test_template_arguments_that_nobody_reads():
    with pytest.raises(GradsiftError, match="does not read 'moode'"):
        build(chat("hi", "yo"), KWARGS_TEMPLATE, template_kwargs={"moode": 1})
    with pytest.raises(GradsiftError, match="is not for the template"):
        build(chat("hi", "yo"), KWARGS_TEMPLATE, template_kwargs={"tokenize": False})
    of_the_row = replace(chat("hi", "yo"), template_kwargs={"moode": 1})
    assert build(of_the_row, KWARGS_TEMPLATE)[0].notes["template_kwargs_not_read"] == 1


def test_templates_that_want_ids_of_calls_or_names_of_results_get_them():
    refuse = "{{ raise_exception('none') }}"
    shown = (
        "{% for c in m.tool_calls %}{% if not c.id or c.id | length != 9 %}"
        + refuse
        + "{% endif %}"
        "{{ c.id + c.function.name + (c.function.arguments | tojson) }}{% endfor %}"
        "{% if m.role == 'tool' %}{% if not m.tool_call_id or not m.name %}"
        + refuse
        + "{% endif %}"
        "{{ m.tool_call_id + m.name }}{% endif %}"
    )
    template = CHAT_TEMPLATE.replace("{% endfor", shown + "{% endfor")
    second = {"type": "function", "function": {"name": "g", "arguments": {"a": "c"}}}
    messages = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL, second]},
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "own456789", **second}]},
        {"role": "tool", "content": "three", "tool_call_id": "own456789"},
        {"role": "assistant", "content": "yo"},
    )
    train = tuple(message["role"] == "assistant" for message in messages)
    result, tokenizer = build(Chat(messages, train), template)
    whole = tokenizer.decode(result.items[0].input_ids)
    assert 'call00000f{"a": "b"}call00001g{"a": "c"}' in whole
    assert "one</s>call00000f" in whole
    assert "two</s>call00001g" in whole
    assert "three</s>own456789g" in whole
    assert "call0" not in build(Chat(messages, train), CALLS_SHOWN)[1].decode(
        build(Chat(messages, train), CALLS_SHOWN)[0].items[0].input_ids
    )


CALLS_SHOWN = CHAT_TEMPLATE.replace(
    "{% endfor",
    "{% for c in m.tool_calls %}{{ (c.id or '') + c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}{% endfor",
)
