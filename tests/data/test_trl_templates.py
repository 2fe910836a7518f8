"""Kinds of rows × the chat templates that trl ships: right, noted, or dropped with a reason."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import trl
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from gradsift.data.formats import Columns, Reader
from gradsift.data.tokenization import build_instances
from gradsift.terms import IGNORED_LABEL
from tiny import tiny_llama, tiny_tokenizer

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
USER = {"role": "user", "content": "xuser"}
ANSWER = {"role": "assistant", "content": "xanswer"}
RESULT = {"role": "tool", "content": "xresult"}
ARGUMENTS = {"xkey": "xvalue"}
TOOL = {
    "type": "function",
    "function": {
        "name": "xname",
        "description": "xdescribed",
        "parameters": {
            "type": "object",
            "properties": {"xkey": {"type": "string", "description": "xwhat"}},
            "required": ["xkey"],
        },
    },
}


def calling(arguments, *, content="", **others):
    call = {"type": "function", "function": {"name": "xname", "arguments": arguments}, **others}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


# Turns and tools; what has to be among the tokens that are trained on, and what before them.
KINDS = {
    "an answer": ([USER, ANSWER], None, ["xanswer"], []),
    "a system prompt": (
        [{"role": "system", "content": "xsystem"}, USER, ANSWER], None, ["xanswer"], ["xsystem"],
    ),
    "two answers": (
        [USER, {**ANSWER, "content": "xearlier"}, USER, ANSWER], None, ["xearlier", "xanswer"], [],
    ),
    "thinking in the text": (
        [USER, {**ANSWER, "content": "<think>\nxthought\n</think>\n\nxanswer"}], None,
        ["xthought", "xanswer"], [],
    ),
    "reasoning_content": (
        [USER, {**ANSWER, "reasoning_content": "xthought"}], None, ["xthought", "xanswer"], [],
    ),
    "thinking": ([USER, {**ANSWER, "thinking": "xthought"}], None, ["xthought", "xanswer"], []),
    "reasoning": ([USER, {**ANSWER, "reasoning": "xthought"}], None, ["xthought", "xanswer"], []),
    "a call": ([USER, calling(ARGUMENTS)], [TOOL], ["xname", "xkey", "xvalue"], ["xdescribed"]),
    "a call, arguments as text": (
        [USER, calling('{"xkey": "xvalue"}')], [TOOL], ["xname", "xkey", "xvalue"], ["xdescribed"],
    ),
    "a call beside an answer": (
        [USER, calling(ARGUMENTS, content="xanswer")], [TOOL], ["xanswer", "xname", "xvalue"], [],
    ),
    "a call and its result": (
        [USER, calling(ARGUMENTS, id="a23456789"), {**RESULT, "tool_call_id": "a23456789"}, ANSWER],
        [TOOL], ["xname", "xvalue", "xanswer"], ["xresult"],
    ),
    "a legacy call": (
        [USER, {"role": "assistant", "content": None,
                "function_call": {"name": "xname", "arguments": '{"xkey": "xvalue"}'}},
         {"role": "function", "name": "xname", "content": "xresult"}, ANSWER],
        [TOOL], ["xname", "xvalue", "xanswer"], ["xresult"],
    ),
    "thinking in earlier turns": (
        [USER, {**ANSWER, "content": "xearlier", "reasoning_content": "xthought"},
         {"role": "user", "content": "xagain"}, {**ANSWER, "reasoning_content": "xthought"}],
        None, ["xearlier", "xanswer"], ["xagain"],
    ),
    "thinking, a call and its result in earlier turns": (
        [USER, {**calling(ARGUMENTS, id="a23456789"), "reasoning_content": "xthought"},
         {**RESULT, "tool_call_id": "a23456789"},
         {**ANSWER, "content": "xearlier", "reasoning_content": "xthought"},
         {"role": "user", "content": "xagain"}, {**ANSWER, "reasoning_content": "xthought"}],
        [TOOL], ["xname", "xvalue", "xearlier", "xanswer"], ["xresult", "xagain"],
    ),
    "two calls in a row, then another question": (
        [USER, calling(ARGUMENTS, id="a23456789"), {**RESULT, "tool_call_id": "a23456789"},
         calling({"xkey": "xsecond"}, id="b23456789"), {**RESULT, "tool_call_id": "b23456789"},
         {**ANSWER, "content": "xearlier"}, {"role": "user", "content": "xagain"}, ANSWER],
        [TOOL], ["xname", "xvalue", "xsecond", "xearlier", "xanswer"], ["xresult", "xagain"],
    ),
}  # fmt: skip


@cache
def tokenizer_of(path):
    return tiny_tokenizer(path.read_text())


def outcome(path, kind):
    """What became of a row: right, noted, or the reason why it was dropped; or what was lost."""
    turns, tools, trained, before = KINDS[kind]
    tokenizer = tokenizer_of(path)
    reader = Reader("messages", Columns(tools="tools"), "all")
    example = reader.parse({"messages": turns, "tools": tools})
    result = build_instances([("x", example)], tokenizer, max_length=100_000)
    if result.dropped:
        return result.dropped["x"][0]
    (item,) = result.items
    response = tokenizer.decode([label for label in item.labels if label != IGNORED_LABEL])
    whole = tokenizer.decode(item.input_ids)
    python_style = "'xkey'" in whole and '"xkey"' not in whole
    if python_style or re.search(r'\\+"xkey', whole):
        return "garbled"
    lost = [word for word in trained if word not in response]
    lost += [word for word in before if word not in whole]
    # What somebody else says is never trained on.
    if wrong := [word for word in ("xuser", "xagain", *before) if word in response]:
        return f"lost, for trained on are {', '.join(wrong)}"
    notes = {key for key, n in result.notes.items() if n} - {"control_tokens_in_text"}
    if not lost:
        return "right"
    return "noted" if notes - {"prompt_not_prefix"} else f"lost {', '.join(lost)}"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_in_silence(kind):
    found = {path.stem: outcome(path, kind) for path in TEMPLATES}
    silent = {name: what for name, what in found.items() if what.startswith(("lost", "garbled"))}
    assert not silent
    # The check does not drop or note what is right.
    assert Counter(found.values())["right"] >= len(TEMPLATES) // 4, Counter(found.values())


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gptoss", "glm4moe", "gemma4"])
def test_tools_and_template_arguments_reach_the_tokens_as_in_trl(tmp_path, name):
    """Of rows in a shape that trl reads, too."""
    kwargs = {"enable_thinking": False, "reasoning_effort": "high"}
    ask, call = [USER], [calling(ARGUMENTS)]
    row = {"prompt": ask, "completion": call, "tools": [TOOL], "chat_template_kwargs": kwargs}
    tokenizer = tiny_tokenizer(Path(TEMPLATES[0]).with_name(f"{name}.jinja").read_text())
    args = SFTConfig(output_dir=str(tmp_path), bf16=False, report_to="none", max_length=None)
    trl_rows = SFTTrainer(
        model=tiny_llama(), args=args, train_dataset=Dataset.from_list([row]),
        processing_class=tokenizer,
    ).train_dataset  # fmt: skip
    example = Reader("prompt_completion", Columns(tools="tools"), "all").parse(row)
    (ours,) = build_instances([("x", example)], tokenizer, max_length=100_000).items
    assert ours.input_ids == next(iter(trl_rows["input_ids"]))
    assert ours.labels == next(iter(trl_rows["labels"]))


if __name__ == "__main__":
    for kind in KINDS:
        print(kind, dict(Counter(outcome(path, kind) for path in TEMPLATES)))
