import pytest

from gradsift.data.example import Chat, Plain
from gradsift.data.language import TOO_SHORT, language_of

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
