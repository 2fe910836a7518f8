import pytest

from gradsift.data.example import Chat, Plain
from gradsift.data.language import TOO_SHORT, is_without_spaces, language_of, languages_of

TEXTS = {
    "en": "The treatment of this disease depends on its cause and on the age of the patient.",
    "de": "Die Behandlung dieser Krankheit hängt von ihrer Ursache und vom Alter des Kranken ab.",
    "fr": "Le traitement de cette maladie dépend de sa cause et de l'âge du patient concerné.",
}


@pytest.mark.parametrize("code", TEXTS)
def test_the_language_is_that_of_the_answer(code):
    assert language_of(Plain(TEXTS["en"], TEXTS[code])) == code
    turns = (
        {"role": "user", "content": TEXTS["en"]},
        {"role": "assistant", "content": TEXTS[code]},
    )
    assert language_of(Chat(turns, (False, True))) == code


def test_of_a_short_answer_nothing_is_guessed():
    assert language_of(Plain(TEXTS["de"], "Yes.")) == TOO_SHORT
    turns = ({"role": "assistant", "content": None, "tool_calls": []},)
    assert language_of(Chat(turns, (True,))) == TOO_SHORT


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("今天天气很好,适合出门散步。", "zh"),
        ("はい、そうです。", "ja"),
        ("네, 알겠습니다.", "ko"),
        ("ไม่รู้", "th"),
        ("ສະບາຍດີ", "lo"),
        ("សួស្តី", "km"),
        ("ဟုတ်ကဲ့", "my"),
        ("བཀྲ་ཤིས།", "bo"),
        # Half-width kana.
        ("ﾃｽﾄﾃﾞｽ", "ja"),
        # Of two signs nobody knows whether they are Chinese or Japanese.
        ("東京", TOO_SHORT),
    ],
)
def test_a_script_tells_the_language_of_a_short_answer(answer, code):
    assert language_of(Plain(TEXTS["en"], answer)) == code


@pytest.mark.parametrize(
    ("texts", "codes"),
    [
        # What says too little by itself is as the others are.
        (["東京", "はい、そうです。", "大阪"], ["ja", "ja", "ja"]),
        (["北京", "今天天气很好,适合出门散步。"], ["zh", "zh"]),
        (["北京"], ["zh"]),
        ([TEXTS["de"], "Ja.", "42"], ["de", "de", "de"]),
        ([TEXTS["en"], "Maybe.", "x = 5"], ["en", "en", "en"]),
        # A list of names is no other language, a sentence is.
        ([TEXTS["en"], "Mumbai, Bengaluru, Chennai, New Delhi, Kolkota"], ["en", "en"]),
        ([TEXTS["en"], TEXTS["en"], TEXTS["de"], "No."], ["en", "en", "de", "en"]),
        # Code in a Chinese answer, a Chinese word in an English one.
        (["使用 git commit -m 命令来提交更改。", TEXTS["en"] + " 你好"], ["zh", "en"]),
        # Nothing to tell it by.
        (["Paris", "42"], [TOO_SHORT, TOO_SHORT]),
        (["نعم", "لا"], ["arabic", "arabic"]),
        (["", "😀"], [TOO_SHORT, TOO_SHORT]),
        ([], []),
    ],
)
def test_languages_of_texts_that_belong_together(texts, codes):
    assert languages_of(texts) == codes


@pytest.mark.parametrize(
    ("characters", "expected"), [("好のカｱไລងမབ々", True), ("aéяعह한1.", False)]
)
def test_scripts_without_spaces(characters, expected):
    assert {is_without_spaces(character) for character in characters} == {expected}


@pytest.mark.parametrize("guess", ["wuu", "yue"])
def test_what_is_written_as_chinese_is_called_that(monkeypatch, guess):
    import py3langid

    monkeypatch.setattr(py3langid, "classify", lambda text: (guess, 0.0))
    monkeypatch.setattr(py3langid, "rank", lambda text: [(guess, 9.0), ("zh", 1.0)])
    assert languages_of(["def f(x): return x + 1  # one more than it was"] * 2) == ["zh", "zh"]
