"""Golden files: what each analysis gives on a small model that arithmetic alone makes.

Each file of tests/golden/ names its analysis and holds its own configuration. Analyses compute in
float64 unless they normalise pixels, which is done in float32. Between versions of torch and
kinds of processors sums are taken in another order; over the some 10^4 operations behind one of
these numbers that is 1e-12 of the largest in float64 and 1e-5 in float32, which the tolerances
exceed by ten to a thousand times.

`python tests/test_golden.py [NAME ...]` writes the files anew, all or those of the analyses named;
what has changed then stands in `git diff`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from analyses import ANALYSES, Subject, differences, run
from torch import Tensor

import evitlab

FOLDER = Path(__file__).parent / "golden"
COMMAND = "python tests/test_golden.py"
FLOAT64, FLOAT32 = 1e-9, 1e-4
SHOWN = 48  # values of a large array that its file holds, evenly spread
ALL = ("efficientvit", "deit", "swin")
NORMALISED = {"evaluate", "picture_attributions", "predict_boxes", "train"}
ROUNDED = {
    "deletion_insertion": 2e-5,  # its record keeps six digits after the point
    "train": 3e-4,  # between torch 2.11 and 2.15; each step rounds what the last one left
}

# What each file is regenerated from: the options of each case, and the families of models.
CASES: dict[str, tuple[list[dict[str, Any]], tuple[str, ...]]] = {
    "ablate_heads": ([{}], ALL),
    "attention_rollout": ([{}], ALL),
    "attribute": (
        [
            {"method": "integrated_gradients", "steps": 4},
            {"method": "grad_cam"},
            {"method": "occlusion", "patch": 16},
            {"method": "layer_conductance", "steps": 2},
            {"method": "head_ablation"},
        ],
        ("efficientvit", "deit"),
    ),
    "box_ap": ([{}], ("efficientvit",)),
    "capture_attention": ([{}], ALL),
    "channel_importance": (
        [{"criterion": "taylor"}, {"criterion": "abs-taylor"}, {"criterion": "magnitude"}], ALL,
    ),
    "completeness_error": ([{}], ("deit",)),
    "count_macs": ([{}], ("efficientvit",)),
    "deletion_insertion": ([{}], ("efficientvit",)),
    "deploy": ([{}], ALL),
    "evaluate": ([{}], ("efficientvit",)),
    "head_similarity": ([{"per": "map"}, {"per": "query"}], ALL),
    "load_weights": ([{}], ("efficientvit", "deit")),
    "logits": ([{}], ALL),
    "match_throughput": ([{}], ("efficientvit",)),
    "measure_cuts": ([{}], ("deit",)),
    "picture_attributions": ([{}], ("efficientvit",)),
    "predict_boxes": ([{}], ("efficientvit",)),
    "profile_operators": ([{}], ("efficientvit", "swin")),
    "prune": ([{"keep": 0.5}], ("efficientvit", "deit")),
    "trace_block": ([{}], ("efficientvit",)),
    "train": ([{}], ("efficientvit",)),
}  # fmt: skip

# Public functions without a golden file, and why.
WITHOUT = {
    "figures, records and lists": {
        "Augment", "compare_recipe", "conclude", "default_dataset_name", "default_detection_name",
        "environment_card", "list_models", "load_study", "planned_cost", "study_frame",
    },
    "what opens or writes a file, tested by what comes back": {
        "export_onnx", "load_detector", "load_model", "open_dataset", "open_detection",
        "photograph", "save_weights",
    },
    "times": {"measure_detector", "measure_roofline", "measure_throughput"},
    "runs of what has one": {"prune_and_recover", "reproduce", "run_study", "train_detector"},
    "in another's file": {
        "classification_report",  # evaluate
        "count_params",  # count_macs
        "create_detector",  # predict_boxes
        "create_model",  # logits
        "evaluate_detector",  # predict_boxes
        "place_anchors",  # predict_boxes
        "predict",  # evaluate
    },
}  # fmt: skip


def cases(name: str) -> Iterator[dict[str, Any]]:
    options, families = CASES[name]
    for family in families:
        for option in options:
            yield {"family": family, "options": option}


def shown(value: Any) -> Any:
    """A result as its file holds it: of large arrays the shape, the size and some values."""
    if isinstance(value, Tensor):
        value = value.detach().double().numpy() if value.is_floating_point() else value.numpy()
    if isinstance(value, np.ndarray):
        if value.size <= SHOWN:
            return value.tolist()
        flat = value.reshape(-1)
        places = np.linspace(0, flat.size - 1, SHOWN).round().astype(int)
        return {
            "shape": list(value.shape),
            "norm": float(np.linalg.norm(flat.astype(float))),
            "sum": float(np.abs(flat).sum()),
            "values": flat[places].tolist(),
        }
    if isinstance(value, Mapping):
        return {key: shown(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) > SHOWN and all(isinstance(item, (int, float)) for item in value):
            return shown(np.asarray(value))
        return [shown(item) for item in value]
    return value


def result(name: str, case: dict[str, Any]) -> Any:
    subject = Subject(family=case["family"])
    with TemporaryDirectory() as folder:
        extra: dict[str, Any] = {"folder": Path(folder) / "run"} if name == "train" else {}
        return shown(run(name, subject, **case["options"], **extra))


@pytest.mark.parametrize("name", sorted(CASES))
def test_as_recorded(name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert golden["analysis"] == name and golden["cases"]
    for case in golden["cases"]:
        found = result(name, case["configuration"])
        wrong = differences(found, case["result"], golden["tolerance"])
        lines = "\n".join(wrong[:20])
        assert not wrong, f"{case['configuration']}\n{lines}\nwhere this is meant: {COMMAND} {name}"


def test_configurations_are_complete() -> None:
    """Each file holds the cases of the table, and there is no other file."""
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CASES) == set(ANALYSES)
    for name in CASES:
        golden = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        assert [case["configuration"] for case in golden["cases"]] == list(cases(name))


def test_every_public_function_is_in_a_file() -> None:
    functions = {
        name for name in evitlab.__all__
        if callable(getattr(evitlab, name)) and not isinstance(getattr(evitlab, name), type)
    }  # fmt: skip
    excused = {name for names in WITHOUT.values() for name in names}
    missing = functions - set(CASES) - excused
    assert not missing, f"without a golden file (see WITHOUT): {sorted(missing)}"
    assert not excused & set(CASES)


@pytest.mark.parametrize("factor", [1 + 1e-7, 1 - 1e-7])
def test_a_small_change_is_seen(factor: float) -> None:
    """A result that is off by a ten-millionth is another one, whatever its form."""
    golden = json.loads((FOLDER / "head_similarity.json").read_text(encoding="utf-8"))
    expected = golden["cases"][0]["result"]
    changed = json.loads(json.dumps(expected), parse_float=lambda text: float(text) * factor)
    assert differences(changed, expected, golden["tolerance"])
    assert not differences(expected, expected, 0.0)
    assert differences({"a": 1}, {"a": 2}, 1.0) and differences({"a": "x"}, {"a": "y"}, 1.0)
    assert differences([1.0], [1.0, 2.0], 1.0) and differences({"a": 1}, {"b": 1}, 1.0)
    assert differences([math.nan], [1.0], 1.0)


def write(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or sorted(CASES):
        golden = {
            "analysis": name,
            "command": f"{COMMAND} {name}",
            "tolerance": ROUNDED.get(name, FLOAT32 if name in NORMALISED else FLOAT64),
            "cases": [
                {"configuration": case, "result": result(name, case)} for case in cases(name)
            ],
        }
        text = json.dumps(golden, indent=None, ensure_ascii=False, allow_nan=False)
        text = text.replace('{"configuration"', '\n{"configuration"')  # a case a line, for git
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(FOLDER.name, f"{name}.json")


if __name__ == "__main__":
    torch.manual_seed(0)
    write(sys.argv[1:])
