"""Rows that the model writes itself, once."""

import shutil

import pyarrow.parquet as pq
import pytest

import gradsift as gs
from comparing import Killed, write_rows
from gradsift.data.example import Chat, Plain
from gradsift.errors import GradsiftError
from gradsift.replay import self_written
from gradsift.replay.self_written import SelfWritten
from gradsift.run_folder import Run
from gradsift.terms import IGNORED_LABEL
from tiny import CHAT_TEMPLATE, tiny_llama, tiny_tokenizer

WITHOUT_WORDS = "{{ 'no word of it' }}"


def captured(folder, template, max_length=64):
    """A run of a model that ends its turns: one of a few tokens is the end."""
    model, tokenizer = tiny_llama(), tiny_tokenizer(template)
    model.get_input_embeddings().weight.data[tokenizer.eos_token_id] *= 40
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_rows(folder / "data.jsonl", 6 + 6)
    pool = gs.load_pool(folder / "data.jsonl", format=None if template else "prompt_completion",
                        prompt_column="prompt", response_column="response")  # fmt: skip
    gs.capture(folder / "model", pool, out=folder / "run", max_length=max_length, warmup_fraction=0,
               signal="head")  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory):
    return captured(tmp_path_factory.mktemp("chat"), CHAT_TEMPLATE)


@pytest.fixture
def run(chat_run, tmp_path):
    return Run(shutil.copytree(chat_run, tmp_path / "run"))


def tokens_of(rows):
    return sum(row.instance.n_response_tokens for row in rows)


def parts(run):
    return sorted(run.folder.glob("self-written/*/part-*.parquet"))


def said(rows):
    return [(row.instance.instance_id, row.instance.input_ids, row.example) for row in rows]


def never(*_, **__):
    pytest.fail("it was written before")


def test_questions_are_written_from_a_turns_beginning_and_then_answered(run):
    rows = SelfWritten(run).rows(150)
    assert tokens_of(rows) >= 150
    assert len(set(map(str, (row.example for row in rows)))) == len(rows)
    for row in rows:
        assert isinstance(row.example, Chat)
        assert row.example.train == (False, True)
        ids, labels = row.instance.input_ids, row.instance.labels
        n = labels.count(IGNORED_LABEL)
        question, answer = (turn["content"] for turn in row.example.messages)
        rendered = run.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True
        )["input_ids"]
        assert ids[:n] == rendered
        assert labels[n:] == ids[n:]
        assert run.tokenizer.decode(ids[n:], skip_special_tokens=True).strip() == answer != ""
        assert len(ids) <= 64
        assert row.finished is (ids[-1] == run.tokenizer.eos_token_id)
    assert any(row.finished for row in rows)


def test_only_as_many_as_are_wanted_and_once(run, monkeypatch, log):
    few = SelfWritten(run).rows(20)
    n_parts = len(parts(run))
    more = SelfWritten(run).rows(20 * tokens_of(few))
    assert len(parts(run)) > n_parts
    assert said(more)[: len(few)] == said(few)
    assert any("resumes: " in line for line in log)
    monkeypatch.setattr(self_written, "load_model", never)
    assert said(SelfWritten(run).rows(20)) == said(more)
    (told,) = SelfWritten(run).told()
    assert f"the model wrote {32 * len(parts(run))} rows for replay, {len(more)} are usable" in told


def test_interrupted_it_goes_on_and_writes_the_same(run, chat_run, tmp_path):
    wanted = 600
    whole = SelfWritten(Run(shutil.copytree(chat_run, tmp_path / "whole"))).rows(wanted)
    calls = []

    def stop(*done):
        calls.append(done)
        if len(calls) == 2:
            raise Killed

    with pytest.raises(Killed):
        SelfWritten(run, stop).rows(wanted)
    assert len(parts(run)) == 1
    assert said(SelfWritten(run).rows(wanted)) == said(whole)
    assert calls[0][3] == wanted


@pytest.mark.parametrize(
    "how", ["bytes", "tokens", "lengths", "answer", "fault", "number", "other"]
)
def test_a_damaged_part_is_written_again(run, how, caplog):
    expected = said(SelfWritten(run).rows(400))
    path = parts(run)[0]
    if how == "bytes":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        # With no digest of its own, as a stranger could write it.
        rows = pq.read_table(path).to_pylist()
        usable = next(row for row in rows if row["fault"] is None)
        if how == "tokens":
            usable["input_ids"][-1] = 5000
        elif how == "lengths":
            usable["n_prompt"] = 99
        elif how == "answer":
            usable["answer"] = "harmless"
        elif how == "fault":
            rows[0]["fault"] = "\x1b[31mred"
        elif how == "number":
            del rows[-1]
        schema = self_written._SCHEMA if how != "other" else None
        rows = rows if how != "other" else [{"a": 1}]
        pq.write_table(pq.read_table(path).from_pylist(rows, schema=schema), path)
    assert said(SelfWritten(run).rows(400)) == expected
    assert f"{path}: damaged or changed" in caplog.text
    assert "It is made again" in caplog.text


def test_rows_that_somebody_else_wrote_are_not_trained_on(run, monkeypatch, tmp_path, caplog):
    expected = SelfWritten(run).rows(400)
    path, other = parts(run)[:2]
    table = pq.read_table(path)
    rows = table.to_pylist()
    usable = next(row for row in rows if row["fault"] is None)
    tokens = usable["input_ids"][usable["n_prompt"] :] = [9, 10, 11]
    usable["answer"] = run.tokenizer.decode(tokens).strip()
    # Under the signature of others, as that of another part, or with none.
    metadata = table.schema.metadata
    for signature in (metadata, pq.read_schema(other).metadata, None):
        forged = table.from_pylist(rows, schema=self_written._SCHEMA)
        pq.write_table(forged.replace_schema_metadata(signature), path)
        caplog.clear()
        assert said(SelfWritten(run).rows(400)) == said(expected)
        assert caplog.text.count("have no signature of yours") == 1
        caplog.clear()
        assert said(SelfWritten(run).rows(400)) == said(expected)
        assert caplog.text == ""
    # A received folder: another user's key.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other-user"))
    written = []
    monkeypatch.setattr(self_written, "write_parquet", lambda path, table: written.append(path))
    assert said(SelfWritten(run).rows(400)) == said(expected)
    assert written == parts(run)


def test_without_a_key_rows_are_written_and_used_but_not_found_again(run, monkeypatch, caplog):
    def refuse(content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(self_written, "sign", refuse)
    own = SelfWritten(run)
    rows = own.rows(100)
    assert "will write them again next time" in caplog.text
    assert f"{len(rows)} are usable" in own.told()[0]
    monkeypatch.undo()
    assert said(SelfWritten(run).rows(100)) == said(rows)
    assert "have no signature" in caplog.text


@pytest.mark.parametrize("template", [None, WITHOUT_WORDS])
def test_texts_are_written_from_their_first_token_where_no_turn_shows(tmp_path, template):
    if template:
        run = Run(captured(tmp_path, CHAT_TEMPLATE))
        run.tokenizer.chat_template = template
    else:
        run = Run(captured(tmp_path, None))
    rows = SelfWritten(run).rows(100)
    for row in rows:
        assert isinstance(row.example, Plain)
        assert row.instance.input_ids[0] == run.tokenizer.bos_token_id
        assert row.instance.labels == row.instance.input_ids


def test_what_repeats_itself_or_is_empty_is_left_out_and_counted(run, monkeypatch):
    eos = run.tokenizer.eos_token_id

    def written(model, tokenizer, prompts, *, max_new_tokens, seed):
        kinds = [[eos], [9] * 21 + [eos], [9, 10, eos], [9, 11]]
        return [kinds[i % 4][:max_new_tokens] for i in range(len(prompts))]

    monkeypatch.setattr(self_written, "sample", written)
    rows = SelfWritten(run).rows(1)
    assert len(rows) == 2
    # Of 8 questions with an end 2 are answered with nothing, and 2 by a text that repeats itself.
    assert SelfWritten(run).told() == [
        "the model wrote 32 rows for replay, 2 are usable (left out: 10 empty, 8 questions without "
        "an end, 10 repeating themselves, 2 said before)"
    ]


def test_a_model_that_writes_nothing_usable_is_given_up(run, monkeypatch):
    monkeypatch.setattr(
        self_written, "sample", lambda model, tokenizer, prompts, **_: [[2] for _ in prompts]
    )
    with pytest.raises(
        GradsiftError, match=r"of 160 rows that the model wrote 0 are usable .*empty"
    ):
        SelfWritten(run).rows(1)
