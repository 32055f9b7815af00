from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autocompress.errors import ConfigurationError, DataError, ModelError
from autocompress.evaluation.tasks import run_tasks
from tests.begin_token import make_begin_tokenizer

QUESTIONS = [
    {"prompt": "import os\nimport", "choices": [" sys", " return"], "answer": 0},
    {
        "prompt": "def __init__(self, name):\n    self.name =",
        "choices": [" import", " name"],
        "answer": 1,
    },
    {"prompt": "for i in range(10", "choices": ["):", " def"], "answer": 1},
]

TASK_FILE = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


@pytest.fixture
def loaded() -> Any:
    from autocompress.surgery.loading import load_model

    return load_model(None)


@pytest.fixture
def task_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks with local data files, one of them missing; nothing is cached outside the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "questions.jsonl"
    data.write_text("\n".join(json.dumps(question) for question in QUESTIONS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "completion.yaml").write_text(TASK_FILE.format(name="completion", data=data))
    (folder / "lost.yaml").write_text(
        TASK_FILE.format(name="lost", data=tmp_path / "nothing.jsonl")
    )
    return folder


def own_accuracy(loaded: Any) -> float:
    """The same task baseline: the choice whose tokens are likelier."""
    hits = 0
    for question in QUESTIONS:
        sums = []
        for choice in question["choices"]:  # type: ignore[attr-defined]
            whole = loaded.tokenizer(question["prompt"] + choice, add_special_tokens=False)[
                "input_ids"
            ]
            start = len(loaded.tokenizer(question["prompt"], add_special_tokens=False)["input_ids"])
            with torch.inference_mode():
                logs = loaded.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            sums.append(
                sum(
                    logs[position - 1, whole[position]].item()
                    for position in range(start, len(whole))
                )
            )
        hits += sums.index(max(sums)) == question["answer"]
    return hits / len(QUESTIONS)


def test_a_local_task_with_local_data(
    loaded: Any,
    task_folder: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = torch.random.get_rng_state()
    rows = run_tasks(loaded.model, loaded.tokenizer, ["completion"], task_folder=task_folder)
    assert [(row.task, row.metric, row.samples) for row in rows] == [("completion", "acc", 3)]
    assert rows[0].value == pytest.approx(own_accuracy(loaded))
    assert math.isfinite(rows[0].stderr)
    assert capsys.readouterr().out == ""
    assert not [record for record in caplog.records if record.name.startswith("lm_eval")]
    torch.testing.assert_close(torch.random.get_rng_state(), state)


ROLLING_FILE = """
task: rolling
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
metadata:
  version: 1
"""


def test_a_begin_token_is_given_once_and_never_scored(task_folder: Path, tiny_llama: Any) -> None:
    tokenizer = make_begin_tokenizer()
    text = " ".join(f"w{7 * number % 90}" for number in range(100))
    (task_folder / "texts.jsonl").write_text(json.dumps({"text": text}))
    file = ROLLING_FILE.format(data=task_folder / "texts.jsonl")
    (task_folder / "rolling.yaml").write_text(file)
    (row,) = run_tasks(tiny_llama, tokenizer, ["rolling"], task_folder=task_folder, begin=(1,))
    # By hand: the first window holds the begin token and 64 tokens to predict, the next one the
    # last 64 tokens before the last one.
    ids = tokenizer.encode(text, add_special_tokens=False)
    total = 0.0
    for inputs, targets in (([1, *ids[:63]], ids[:64]), (ids[35:99], ids[64:])):
        with torch.inference_mode():
            logs = tiny_llama(input_ids=torch.tensor([inputs])).logits[0].double().log_softmax(-1)
        rows = range(len(inputs) - len(targets), len(inputs))
        total += sum(logs[row, token].item() for row, token in zip(rows, targets, strict=True))
    assert row.value == pytest.approx(math.exp(-total / 100), rel=1e-4)


def test_a_task_with_tokens_beyond_the_vocabulary(task_folder: Path, tiny_llama: Any) -> None:
    tokenizer = make_begin_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["return"]})
    with pytest.raises(DataError, match="a task's text holds tokens that the model has no rows"):
        run_tasks(tiny_llama, tokenizer, ["completion"], task_folder=task_folder)


def test_patterns_and_limits(loaded: Any, task_folder: Path) -> None:
    rows = run_tasks(loaded.model, loaded.tokenizer, ["compl*"], task_folder=task_folder, limit=2)
    assert [(row.task, row.samples) for row in rows] == [("completion", 2)]


def test_missing_data_is_one_paragraph(loaded: Any, task_folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"task lost cannot be loaded.*paths from the current folder"
    ):
        run_tasks(loaded.model, loaded.tokenizer, ["lost"], task_folder=task_folder)


def test_unreachable_hub(loaded: Any, task_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        DataError, match=r"cannot be reached \(Couldn't reach 'owner/name' on the Hub\)"
    ):
        run_tasks(loaded.model, loaded.tokenizer, ["completion"], task_folder=task_folder)


def test_unknown_task_names_the_nearest(
    loaded: Any, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    class LocalOnly(lm_eval.tasks.TaskManager):  # type: ignore[misc]
        """Without lm-eval's own collection, which takes seconds to read."""

        def __init__(self, include_path: str | None = None, include_defaults: bool = True) -> None:
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", LocalOnly)
    with pytest.raises(ConfigurationError, match=r"'complexion'\. Nearest names: completion"):
        run_tasks(loaded.model, loaded.tokenizer, ["complexion"], task_folder=task_folder)


def test_bad_arguments(loaded: Any, tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no task is named"):
        run_tasks(loaded.model, loaded.tokenizer, [])
    with pytest.raises(ConfigurationError, match="--task-folder is no folder"):
        run_tasks(loaded.model, loaded.tokenizer, ["x"], task_folder=tmp_path / "nothing")
    with pytest.raises(ModelError, match="T5"):
        run_tasks(tiny_model("t5"), loaded.tokenizer, ["x"])
