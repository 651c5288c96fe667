"""The README as data: its code blocks, and the commands that it mentions in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OURS = ("evitlab", "torchrun", "make", "pip", "conda", "source")  # what its commands begin with


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def uncommented(line: str) -> str:
    return re.split(r"\s+#", line, maxsplit=1)[0].strip()


def command_lines(text: str = README) -> list[str]:
    """Every line of the bash blocks, without its comment."""
    lines = "".join(blocks("bash", text)).splitlines()
    return [uncommented(line) for line in lines if uncommented(line)]


def mentioned(text: str = README) -> list[str]:
    """Commands between backticks in the prose."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"`([^`\n]+)`", prose)
    return list(dict.fromkeys(c for c in found if c.split()[0] in OURS and len(c.split()) > 1))
