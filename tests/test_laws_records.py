"""Laws of every record class: what is saved comes back, or is refused in one line.

Tried on small records of each class whose values, and lengths of lists, have been changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import tried
from some_records import RECORDS, one_of

from evitlab import Finding, conclude
from evitlab.schema import decode, encode

FINITE = st.floats(allow_nan=False, allow_infinity=False)
# Mostly of the type that stands there, so that many are accepted; long whole numbers are not.
OTHERS = st.none() | st.booleans() | st.integers() | FINITE | st.text(max_size=8)
SAME_TYPE: dict[type[Any], st.SearchStrategy[Any]] = {
    bool: st.booleans(), int: st.integers(), float: FINITE, str: st.text(max_size=8),
}  # fmt: skip


def changed(data: st.DataObject, value: Any) -> Any:
    """JSON with many of its values changed, few of them to another type, and few other lengths."""
    if isinstance(value, dict):
        return {key: changed(data, item) for key, item in value.items()}
    if isinstance(value, list):
        count = data.draw(st.sampled_from([1] * 30 + [0, 2])) * len(value)
        return [changed(data, item) for item in (value * 2)[:count]]
    chance = data.draw(st.integers(0, 63))
    if chance == 63:
        return data.draw(OTHERS)
    return data.draw(SAME_TYPE.get(type(value), OTHERS)) if chance > 40 else value


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.__name__)
def test_what_is_saved_comes_back(
    cls: type[Any], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    path, plain = tmp_path / "record.json", encode(one_of(cls), "")

    def comes_back(record: Any) -> None:
        loaded = cls.load(record.save(path))
        assert loaded == record
        before = path.read_bytes()
        assert json.loads(before)["record"] == cls.__name__
        assert loaded.save(path).read_bytes() == before

    @tried(pytestconfig, 8)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        try:
            record = decode(changed(data, plain), cls, cls.__name__)
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
        else:
            comes_back(record)

    comes_back(one_of(cls))
    law()


def test_findings(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """A finding is as it should be where it holds and should, or does not and should not."""
    words = st.text(min_size=1, max_size=8).filter(lambda text: bool(text.strip()))
    measured = FINITE | st.integers() | words

    @tried(pytestconfig, 15)
    @given(words, measured, measured, st.booleans(), st.booleans(), words)
    def law(
        claim: str, paper: Any, ours: Any, holds: bool, expected: bool, note: str
    ) -> None:
        one = Finding(claim, paper=paper, ours=ours, holds=holds, command="make x",
                      expected=expected, note=note)  # fmt: skip
        assert one.as_expected == (holds == expected)
        assert (one.paper, one.ours) == (str(paper), str(ours))
        if one.as_expected:
            table = conclude([one, one], notebook="law", out_dir=tmp_path)
            assert "unexpectedly" not in one.verdict
        else:
            with pytest.raises(AssertionError, match="2 of 2"):
                conclude([one, one], notebook="law", out_dir=tmp_path)
            table = None
        saved = json.loads((tmp_path / "findings" / "law.json").read_text(encoding="utf-8"))
        assert [entry["holds"] for entry in saved["findings"]] == [holds] * 2
        if table is not None:
            assert type(table).load(tmp_path / "findings" / "law.json") == table
            assert len(table.to_frame()) == 2 and "<table>" in table._repr_html_()

    law()
