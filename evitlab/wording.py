"""What errors say of what they were given, in one line."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches


def check_choice(name: str, given: object, known: Collection[str]) -> None:
    """Raise a ValueError, with the closest name, where a choice is not one of those there are."""
    if given not in known:
        hint = did_you_mean(given, known)
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {given!r}{hint}")


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """What to add to an error of a name that is not known; empty where none is close."""
    close = get_close_matches(str(given), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def on_one_line(message: object) -> str:
    """Another library's error, whose lines may be many; signs that a terminal obeys are spelt."""
    text = " ".join(str(message).split())
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def shown(key: object, most: int = 80) -> str:
    """A name out of a file from anywhere: as it is, or quoted where it is long or hides signs."""
    text = str(key)
    return text if text.isprintable() and len(text) <= most else f"{text[:most]!r}"
