"""What can be told of an answer from its words alone: does it restate, refuse, say next to nothing?

Of each row by itself; what is unusual about a subset of rows is said beside their pool
(`selection.answers`). The phrases are a short list, of the languages below; an answer that refuses
in other words is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gradsift.data.example import Example, Plain, last_exchange
from gradsift.data.language import in_another_language, is_without_spaces

# Where an answer begins so, or soon comes to it, it refuses, or says that it cannot be given.
PHRASES = {
    "en": (
        *(
            "as an ai",
            "as a language model",
            "as a large language model",
            "i am an ai",
            "i'm an ai",
        ),
        *("i cannot help", "i can't help", "i cannot assist", "i can't assist"),
        *("i cannot provide", "i can't provide", "i cannot answer", "i can't answer"),
        *("i am unable to", "i'm unable to", "i am not able to", "i'm not able to"),
        *("i'm sorry, but", "i am sorry, but", "i apologize, but", "sorry, but i can"),
        *("i do not have access", "i don't have access", "i do not have enough information"),
        *("this text does not", "the text does not", "this passage does not"),
        *("the passage does not", "the context does not", "the document does not"),
        *("the provided text does not", "the given text does not", "does not provide information"),
        *("does not provide any information", "does not contain information"),
        *("does not contain any information", "no information is provided"),
        *("there is not enough information", "there is no information"),
    ),
    "de": (
        *("als ki-", "als eine ki", "als künstliche intelligenz", "als sprachmodell"),
        *("dabei kann ich nicht helfen", "ich kann ihnen nicht helfen"),
        *("ich kann dir nicht helfen", "ich bin nicht in der lage"),
        *("es tut mir leid, aber", "tut mir leid, aber"),
        *("der text enthält keine", "der text gibt keine", "dieser text enthält keine"),
    ),
    "fr": (
        *("en tant qu'ia", "en tant qu'intelligence artificielle"),
        *(
            "en tant que modèle de langage",
            "je ne peux pas vous aider",
            "je ne peux pas répondre",
            "je suis désolé, mais",
        ),
        *("je suis désolée, mais", "le texte ne", "ce texte ne"),
    ),
    "es": (
        *("como ia", "como una ia", "como inteligencia artificial", "como modelo de lenguaje"),
        *("no puedo ayudarte", "no puedo ayudarle", "lo siento, pero"),
        *("el texto no proporciona", "el texto no contiene", "este texto no proporciona"),
    ),
    "zh": (
        *("作为一个人工智能", "作为人工智能", "作为一个ai", "作为ai", "作为一个语言模型"),
        "抱歉，我无法",
    ),
}
# A phrase further inside is part of what is told.
_CHARACTERS_LOOKED_AT = 200
_PHRASE = re.compile(
    "|".join(
        # At the beginning of a word, where words have one.
        (r"\b" if phrase[0].isascii() else "") + re.escape(phrase)
        for phrases in PHRASES.values()
        for phrase in sorted(phrases, key=len, reverse=True)
    )
)
# Fewer letters and digits than this say next to nothing; a character of Chinese says about three.
FEWEST_LETTERS = 15
_LETTERS_OF_ONE = 3
_WORD = re.compile(r"\w+")


def repeated_share(prompt: str, answer: str) -> float | None:
    """Compute the share of an answer's words that stand in its prompt; None without words.

    Where words have no spaces between them, pairs of characters are taken for words.
    """
    words = list(words_of(answer))
    asked = set(words_of(prompt))
    return sum(word in asked for word in words) / len(words) if words and asked else None


def boilerplate(answer: str) -> str | None:
    """Return the phrase by which an answer refuses or says that it cannot be given, if any."""
    beginning = answer[:_CHARACTERS_LOOKED_AT].casefold().replace("’", "'")
    found = _PHRASE.search(beginning)
    return None if found is None else found[0]


def is_near_empty(answer: str) -> bool:
    """Return whether an answer has fewer than FEWEST_LETTERS letters and digits."""
    n = 0
    for character in answer:
        if character.isalnum():
            n += _LETTERS_OF_ONE if is_without_spaces(character) else 1
            if n >= FEWEST_LETTERS:
                return False
    return True


def traits_of(example: Example, language: str | None) -> dict[str, float | str | bool | None]:
    """Return what a row's answers are like; None where something cannot be told.

    Args:
        example: The row.
        language: Of its answers, as `language_of` says it.

    Returns:
        `repeats`, `boilerplate` and `other_language` of the last answer that is trained on;
        `near_empty` of all of them together.
    """
    prompt, answer = last_exchange(example)
    turns = [] if isinstance(example, Plain) else example.trained
    everything = answer if not turns else "\n".join(str(turn["content"] or "") for turn in turns)
    calls = any(turn.get("tool_calls") for turn in turns)
    return {
        "repeats": repeated_share(prompt, answer),
        "boilerplate": boilerplate(answer),
        "near_empty": not calls and is_near_empty(everything),
        "other_language": in_another_language(prompt, answer, language),
    }


def words_of(text: str) -> Iterator[str]:
    """Return the words of a text, in small letters; pairs of characters where it has no spaces."""
    for match in _WORD.finditer(text.casefold()):
        word = match[0]
        if word.isascii() or not is_without_spaces(word[0]) or len(word) == 1:
            yield word
        else:
            yield from (word[at : at + 2] for at in range(len(word) - 1))
