"""Which language a row is in, guessed from its answers."""

from __future__ import annotations

from gradsift.data.example import Example, Plain

# A guess of the language from fewer characters than this is worth nothing.
FEWEST_CHARACTERS = 40
# The beginning is enough, and keeps a pool of long rows quick.
_MOST_CHARACTERS = 1_000
TOO_SHORT = "too short to tell"


def language_of(example: Example) -> str:
    """Guess the language of what is trained on: an ISO 639-1 code, or TOO_SHORT."""
    # It comes with what capturing needs, not with what selecting needs.
    import py3langid

    if isinstance(example, Plain):
        text = example.response
    else:
        text = "\n".join(str(turn.get("content") or "") for turn in example.trained)
    text = text.strip()
    if len(text) < FEWEST_CHARACTERS:
        return TOO_SHORT
    return str(py3langid.classify(text[:_MOST_CHARACTERS])[0])
