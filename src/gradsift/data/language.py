"""Which language a text is in: told by its script where that tells, else guessed (py3langid)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from gradsift.data.example import Example, Plain

# A guess of the language from fewer characters than this is worth nothing.
FEWEST_CHARACTERS = 40
# The beginning is enough, and keeps a pool of long rows quick.
_MOST_CHARACTERS = 1_000
TOO_SHORT = "too short to tell"
ENGLISH = "en"
# What py3langid says of JSON, and of some code.
NO_LANGUAGE = "zxx"
# Written as Chinese is; py3langid takes code with Chinese comments for the first.
_WRITTEN_AS = {"wuu": "zh", "yue": "zh"}

LATIN = "LATIN"
_HAN, _KANA = "HAN", "KANA"
# What the first word of a character's Unicode name says, where it is not the script itself.
_SCRIPT_OF_NAME = {
    "CJK": _HAN,
    "IDEOGRAPHIC": _HAN,
    "BOPOMOFO": _HAN,
    "HIRAGANA": _KANA,
    "KATAKANA": _KANA,
}
_LANGUAGE_OF_SCRIPT = {
    "HANGUL": "ko",
    "THAI": "th",
    "LAO": "lo",
    "KHMER": "km",
    "MYANMAR": "my",
    "TIBETAN": "bo",
}
# Written without spaces between words.
WITHOUT_SPACES = ("zh", "ja", "th", "lo", "km", "my", "bo")
_SCRIPTS_WITHOUT_SPACES = {_HAN, _KANA, *_LANGUAGE_OF_SCRIPT} - {"HANGUL"}
# Letters of an alphabet that say about as much as one of these.
_WEIGHTS = {_HAN: 3, _KANA: 3, "HANGUL": 3}
# Japanese has more kana than this beside its Han characters, but for a name or a title.
_KANA_SHARE = 0.1
_FEWEST_HAN = 10
# By how many nats a row's own guess must be likelier than the language of the rows around it. Of
# 15,000 English answers four are above (one is French); German, of 40 characters, is at 70.
_SURE = 40


def language_of(example: Example) -> str:
    """Guess the language of what is trained on: an ISO 639 code, or TOO_SHORT."""
    if isinstance(example, Plain):
        text = example.response
    else:
        text = "\n".join(str(turn.get("content") or "") for turn in example.trained)
    return _language(text.strip())


def in_another_language(prompt: str, answer: str, language: str | None) -> bool | None:
    """Say whether an answer is surely in another language than its prompt; None: too short to tell.

    `language` is that of the answer, as `language_of` says it.
    """
    asked = _language(prompt.strip())
    if language in (None, TOO_SHORT, NO_LANGUAGE) or asked in (TOO_SHORT, NO_LANGUAGE):
        return None
    if asked == language:
        return False
    if _main_script(prompt) != _main_script(answer):
        return True
    return _is_surely(prompt, asked, language) and _is_surely(answer, language, asked)


def _language(text: str) -> str:
    return _by_script(text) or (TOO_SHORT if len(text) < FEWEST_CHARACTERS else _guess(text))


def _is_surely(text: str, language: str, not_in: str) -> bool:
    import py3langid

    nats = dict(py3langid.rank(text[:_MOST_CHARACTERS]))
    return language in nats and not_in in nats and nats[language] - nats[not_in] >= _SURE


def languages_of(texts: Sequence[str]) -> list[str]:
    """Say of each of some texts that belong together in which language it is.

    One that says too little by itself is taken to be in the language of most others in its script.
    Where all of them do, it is that script, in small letters; TOO_SHORT if it is the Latin one.
    """
    languages = [_by_script(text) for text in texts]
    scripts = [_main_script(text) for text in texts]
    for script in sorted(set(scripts) - {""}):
        alike = [at for at, other in enumerate(scripts) if other == script]
        unknown = [at for at in alike if languages[at] is None]
        if script == _HAN:
            known = Counter(languages[at] for at in alike if languages[at] is not None)
            most = known.most_common(1)[0][0] if known else None
            of_unknown = [most or "zh"] * len(unknown)
        else:
            of_unknown = _guesses([texts[at] for at in unknown], script)
        for at, language in zip(unknown, of_unknown, strict=True):
            languages[at] = language
    # Numbers and signs.
    said = Counter(language for language in languages if language is not None)
    most_said = said.most_common(1)[0][0] if said else TOO_SHORT
    return [language or most_said for language in languages]


@lru_cache(maxsize=2**16)
def is_without_spaces(character: str) -> bool:
    """Return whether a character's script has no spaces between words."""
    return _script(character) in _SCRIPTS_WITHOUT_SPACES


@lru_cache(maxsize=2**16)
def _script(character: str) -> str:
    # Python has no scripts of characters, but their names begin with them.
    name = unicodedata.name(character, "").removeprefix("HALFWIDTH ").removeprefix("FULLWIDTH ")
    first = re.split(r"[ -]", name, maxsplit=1)[0]
    return _SCRIPT_OF_NAME.get(first, first)


def _letters(text: str) -> Counter[str]:
    letters = (char for char in text[:_MOST_CHARACTERS] if unicodedata.category(char)[0] == "L")
    return Counter(map(_script, letters))


def _main_script(text: str) -> str:
    """Return the script that says most of a text, HAN for Japanese; "" without any letter."""
    weights: Counter[str] = Counter()
    for script, n in _letters(text).items():
        weights[_HAN if script == _KANA else script] += n * _WEIGHTS.get(script, 1)
    return weights.most_common(1)[0][0] if weights else ""


def _by_script(text: str) -> str | None:
    script = _main_script(text)
    if script != _HAN:
        return _LANGUAGE_OF_SCRIPT.get(script)
    letters = _letters(text)
    if letters[_KANA] > _KANA_SHARE * (letters[_KANA] + letters[_HAN]):
        return "ja"
    return "zh" if letters[_HAN] >= _FEWEST_HAN else None


def _guess(text: str) -> str:
    # It comes with what capturing needs, not with what selecting needs.
    import py3langid

    guess = str(py3langid.classify(text[:_MOST_CHARACTERS])[0])
    return _WRITTEN_AS.get(guess, guess)


def _guesses(texts: Sequence[str], script: str) -> list[str]:
    import py3langid

    votes: Counter[str] = Counter()
    for text in texts:
        if len(text) >= FEWEST_CHARACTERS:
            votes[_guess(text)] += min(len(text), _MOST_CHARACTERS)
    together = "\n".join(texts)
    if not votes and len(together) < FEWEST_CHARACTERS:
        return [TOO_SHORT if script == LATIN else script.lower()] * len(texts)
    most = votes.most_common(1)[0][0] if votes else _guess(together)
    languages = []
    for text in texts:
        nats = dict(py3langid.rank(text[:_MOST_CHARACTERS]))
        own = max(nats, key=nats.__getitem__)
        sure = nats[own] - nats[most] >= _SURE
        languages.append(_WRITTEN_AS.get(own, own) if sure else most)
    return languages
