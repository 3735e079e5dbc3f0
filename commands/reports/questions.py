"""The questions on a report's page: rows that open to frames, cameras, prompt and answers, to filter and sort."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from commands.reports.pictures import Pictures
from commands.reports.plot import Errors, draw_errors
from commands.reports.scores import Tested
from commands.reports.tables import by_setting
from zoo.benchmarks import find_benchmark
from zoo.errors import printable

WRONG = 0.5  # a lower score counts as wrong
STYLE = """
.questions > details, .head { border-bottom: 1px solid #8886; padding: .25em 0; content-visibility: auto;
  contain-intrinsic-size: auto 1.6em; min-width: max-content; }
.questions > details:hover { background: #8882; }
.questions summary, .head { display: grid; gap: .8em; list-style: none;
  grid-template-columns: 7em 15em 32em 7em repeat(var(--settings), 6em); }
.questions summary > *, .head > * { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.questions pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3em 0; max-width: 60em; }
.questions dl { margin: .5em 1em; width: min(1150px, 92vw); }
.questions dt { font-weight: bold; } .questions dd { margin: 0 0 .6em 0; }
.questions dd img { display: block; margin: .3em 0; max-width: min(100%, 900px); }
select { margin-right: 1.5em; }
"""
# what HTML and CSS can't do: show the rows that match the first two menus, in the order of the third
SCRIPT = """
for (const section of document.querySelectorAll("section")) {
  const list = section.querySelector(".questions"), rows = [...list.children];
  const [type, answers, order] = section.querySelectorAll("select");
  section.addEventListener("change", () => {
    const found = rows.filter(row => (!type.value || row.dataset.type === type.value)
      && (!answers.value || row.classList.contains(answers.value)));
    if (order.value) found.sort((a, b) => b.dataset[order.value] - a.dataset[order.value]);
    list.replaceChildren();
    for (const row of found) list.append(row);
    section.querySelector("output").value = `${found.length} of ${rows.length}`;
  });
}
"""


def question_section(tested: Sequence[Tested], pictures: Pictures) -> str:
    """Return the questions of tests that were asked the same ones, each with all answers.

    Args:
        tested: The tests.
        pictures: Addresses of pictures.
    """
    settings = by_setting(tested)
    ids = tested[0].questions.index
    means = [np.mean([each.questions["score"].reindex(ids) for each in own], axis=0) for own in settings.values()]
    tests = {_name(each, tested): each for each in chain(*settings.values())}
    records = {name: each.questions.reindex(ids).to_dict("records") for name, each in tests.items()}
    rows = [
        _row(
            str(id),
            {name: own[n] for name, own in records.items()},
            [mean[n] for mean in means],
            pictures,
            {name: each.folder for name, each in tests.items() if each.folder is not None},
        )
        for n, id in enumerate(ids)
    ]
    kinds = dict.fromkeys(tested[0].questions["question_type"])
    types = {"": "all", **{kind: kind for kind in kinds}}
    answers = {"": "all", "wrong": "some wrong (below 50)", "lost": "all wrong", "failed": "failed"}
    orders = {"": "as asked", "loss": "lowest mean score first"}
    orders |= {"gap": "largest difference between two rows first"} if len(settings) > 1 else {}
    menus = _menu("Type", types) + _menu("Answers", answers) + _menu("Order", orders)
    head = "".join(f"<b>{_text(name)}</b>" for name in ("id", "type", "question", "truth", *settings))
    return (
        f'<section style="--settings: {len(settings)}"><h2>Questions</h2>{_error_plot(settings)}'
        f"<p>{menus}<output>{len(rows)} of {len(rows)}</output> questions. Click one for its frames and answers.</p>"
        f'<div><div class="head">{head}</div><div class="questions">{"".join(rows)}</div></div></section>'
    )


def _name(test: Tested, tested: Sequence[Tested]) -> str:
    """Return the name of a test, with its folder if another one has the same name."""

    def name(each: Tested) -> str:
        return ", ".join(filter(None, (each.label, each.test, "" if each.seed is None else f"seed {each.seed}")))

    is_unique = sum(name(each) == name(test) for each in tested) == 1
    return name(test) if is_unique else f"{name(test)} ({test.folder})"


def _row(
    id: str,
    records: Mapping[str, dict[Any, Any]],
    scores: Sequence[float],
    pictures: Pictures,
    folders: Mapping[str, Path],
) -> str:
    """Return one question.

    Args:
        id: Its id.
        records: Its record in each test, by the test's name.
        scores: Its score in each setting.
        pictures: Addresses of pictures.
        folders: The folder of each test, by the test's name.
    """
    first, *_ = records.values()
    truth = str(first.get("ground_truth", first.get("truth", "")))
    own = [record["score"] for record in records.values()]
    has_failed = any(record.get("error") for record in records.values())
    marks = {"wrong": min(own) < WRONG, "lost": max(own) < WRONG, "failed": has_failed}
    data = {"type": first["question_type"], "loss": f"{1 - np.mean(scores):.4f}", "gap": f"{np.ptp(scores):.4f}"}
    attributes = "".join(f' data-{key}="{_text(value)}"' for key, value in data.items())
    asked = first.get("question", "") or first["scene"]
    cells = [id, first["question_type"], asked, truth, *(f"{100 * score:.1f}" for score in scores)]
    summary = "".join(f"<span>{_text(cell)}</span>" for cell in cells)
    parts = [("scene", str(first["scene"])), ("question", str(first.get("question", ""))), ("truth", truth)]
    for prompt, names in _alike(records, "prompt").items():
        parts.append((f"prompt{names}", prompt))
    body = "".join(f"<dt>{_text(name)}</dt><dd><pre>{_text(text)}</pre></dd>" for name, text in parts if text)
    for name, record in records.items():
        said = f"failed: {record['error']}" if record.get("error") else str(record.get("prediction", ""))
        body += f"<dt>{_text(name)}: {100 * record['score']:.1f}</dt><dd><pre>{_text(said)}</pre></dd>"
        if (address := pictures.explained.get(folders.get(name, Path()), {}).get(id)) is not None:
            body += f'<dd><img loading="lazy" src="{_text(address)}" alt="the views that this answer depends on"></dd>'
    for frames, names in _alike(records, "frames").items():
        body += f"<dt>frames{_text(names)}</dt><dd>{_text(', '.join(map(str, frames)))}<br>"
        for address in pictures.shown.get((first["scene"], frames), ()):
            alt = "the frames, those of a temporal patch side by side" if address.endswith("jpg") else "map from above"
            body += f'<img loading="lazy" src="{_text(address)}" alt="{alt}">'
        body += "</dd>"
    named = " ".join(mark for mark, is_set in marks.items() if is_set)
    return f"<details class='{named}'{attributes}><summary>{summary}</summary><dl>{body}</dl></details>\n"


def _alike(records: Mapping[str, dict[Any, Any]], key: str) -> dict[Any, str]:
    """Return the values of an entry, each with the names of the tests that have it if others have another one."""
    found: dict[Any, list[str]] = {}
    for name, record in records.items():
        if record.get(key):
            found.setdefault(record[key], []).append(name)
    return {value: f" of {'; '.join(names)}" if len(found) > 1 else "" for value, names in found.items()}


def _menu(name: str, choices: Mapping[str, str]) -> str:
    options = "".join(f'<option value="{_text(value)}">{_text(text)}</option>' for value, text in choices.items())
    return f'<label>{name} <select autocomplete="off">{options}</select></label>'


def _text(text: object) -> str:
    return escape(printable(str(text)))


def _error_plot(settings: Mapping[str, Sequence[Tested]]) -> str:
    """Return a picture of numeric answers against the truth. Empty without numeric questions or without answers."""
    first = next(iter(settings.values()))[0]
    benchmark, truth = find_benchmark(first.benchmark), "ground_truth" if "ground_truth" in first.questions else "truth"
    errors: dict[str, dict[str, Errors]] = {}
    for kind in benchmark.numeric_types:
        for name, own in settings.items():
            pairs = [
                [benchmark.read_number(str(text)) for text in pair]
                for each in own
                if {truth, "prediction"} <= {*each.questions}
                for pair in each.questions.loc[each.questions["question_type"] == kind, [truth, "prediction"]].values
            ]
            if pairs:
                numbers = np.array(pairs, dtype=np.float64)  # None becomes NaN
                errors.setdefault(kind, {})[name] = numbers[np.isfinite(numbers[:, 0])]
    if not errors:
        return ""
    draw_errors(errors, file := BytesIO())
    data = b64encode(file.getvalue()).decode()
    return f'<img alt="answers against truths, and errors, of numeric questions" src="data:image/png;base64,{data}">'
