"""Ask a run about variants of its scenes, and pool its answers into responses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from commands.responses.results import RESPONSES, Response, Sums, as_json, draw, sums_of
from commands.runs import LoadedRun, load_run
from datamodules.collate import QuestionCollate
from datamodules.interventions import Intervention, Origin, Variant, default_interventions
from datamodules.scenes import Question, Scene
from datamodules.sources.base import Split
from run_folder.record import RunRecord
from run_folder.results import fingerprint_code
from zoo.benchmarks import Benchmark
from zoo.configuration import known_config
from zoo.errors import InputError
from zoo.files.atomic_io import JSONLines, read_records, write_json
from zoo.files.fingerprint import fingerprint
from zoo.generation import Reply
from zoo.model import SpatialVLM
from zoo.progress import progress
from zoo.sequences.loaded_scene import LoadedScene
from zoo.weights.saved_models import config_of

NUM_SCENES = 50  # as many as are asked unless another number is given
ANSWERS = "responses.jsonl"  # in a run's folder: the answers of each scene under each intervention
GREEDY = ("max_new_tokens", "repetition_penalty")  # options of a task on which greedy answers depend
Record = dict[str, Any]


def responses_of(
    run: str | Path,
    interventions: Sequence[Intervention] | None = None,
    split: Split = "test",
    num_scenes: int = NUM_SCENES,
    device: str | None = None,
    trust_modules: Collection[str] = (),
    *,
    data: str | None = None,
    folder: str | Path | None = None,
) -> list[Response]:
    """Measure the responses of a run.

    Args:
        run: The run's folder.
        interventions: What is changed. None is all that the data permits, see `default_interventions`.
        split: Which scenes.
        num_scenes: Largest number of scenes, from the start of the split.
        device: Device of the model. None is a GPU if there is one, else the CPU.
        trust_modules: Modules that a run of someone else may import.
        data: A config whose data replace the run's, such as data_vsibench.yaml.
        folder: Where answers, responses and their figure are written. What it has of the answers is not asked again.
            None writes nothing.

    Raises:
        InputError: The run can't be read, its data do not permit an intervention, or no question has a declared
            response.
    """
    loaded = load_run(Path(run), SpatialVLM.from_pretrained, split, num_scenes, device, trust_modules, data)
    source, scenes = loaded.data.source, loaded.dataset.scenes
    chosen = default_interventions(source) if interventions is None else interventions
    for each in chosen:
        each.check(source, scenes)
    check_questions(loaded)
    file = None if folder is None else Path(folder) / ANSWERS
    records = ask_all(loaded, chosen, split, file)
    responses = [each for own in chosen for each in pool(loaded, own, records[name_of(own)])]
    if folder is not None:
        about = {"run": str(run), "split": split, "scenes": len(scenes)}
        write_json(Path(folder) / RESPONSES, {**about, "responses": [as_json(each) for each in responses]})
        curves = {name_of(each): records[name_of(each)] for each in chosen if each.measure == "answer"}
        if any(curves.values()):
            draw(curves, (Path(folder) / RESPONSES).with_suffix(".png"))
    return responses


def name_of(intervention: Intervention) -> str:
    """Return the name of an intervention in results: its class, with the settings that differ from the defaults."""
    given, defaults = known_config(intervention), signature(type(intervention)).parameters
    options = [f"{name} {value}" for name, value in given.items() if value != defaults[name].default]
    return type(intervention).__name__ + (f" ({', '.join(options)})" if options else "")


def check_questions(run: LoadedRun) -> None:
    """Raise an InputError if no question of a run has candidate answers."""
    benchmark, asked = run.data.source.benchmark, [q for scene in run.dataset.scenes for q in scene.questions]
    if not any(benchmark.candidates(each.question_type, each.options) for each in asked):
        kinds = ", ".join(sorted({each.question_type for each in asked} - {""})) or "free text"
        raise InputError(
            f"{run.folder}: no declared response for its questions ({kinds}): {benchmark.name} needs `answer_grids` "
            "and `exponents` for them, see zoo/benchmarks/base.py"
        )


def unresponsive(model: SpatialVLM, intervention: Intervention, poses_in_prompt: bool) -> str:
    """Return why a model can't respond to an intervention, whatever it has learned. Empty if it can."""
    plan, encoder = model.camera_plan, model.geometry
    if intervention.told == "images" or poses_in_prompt:
        return ""
    reads = set() if encoder is None else {field for own in encoder.given_fields.values() for field in own}
    told_encoder = encoder is not None and bool(encoder.requires_cameras or encoder.reads_depth or reads)
    if model.uses_geometry_tokens and told_encoder:
        return ""
    if not plan.uses_cameras:
        return "reads 3D tokens of the frames alone" if model.uses_geometry_tokens else "reads no cameras"
    if plan.source == "predicted" and not told_encoder:
        return "predicts its cameras" if encoder is None or encoder.scale_from is None else "predicts its scale"
    if intervention.told == "lengths" and not plan.uses_lengths and not plan.uses_depth:
        return "reads no unit of lengths"
    return ""


# ---- Answers ---------------------------------------------------------------------------------------------------------


def ask_all(
    run: LoadedRun, interventions: Sequence[Intervention], split: Split, file: Path | None
) -> dict[str, list[Record]]:
    """Ask about all scenes under all interventions, and return the records by the intervention's name.

    Args:
        run: The run.
        interventions: What is changed.
        split: The split of the scenes.
        file: JSON lines with the records, to which new ones are appended. None keeps none.

    Raises:
        InputError: No scene can be asked, or the file is a link or can't be written.
    """
    if file is not None and file.is_symlink():  # someone else's run may name any file of this machine
        raise InputError(f"{file} is a link, which is not followed: remove it, or choose another folder with --output")
    config, scenes = config_of(run.folder), run.dataset.scenes
    greedy = {name: value for name, value in (config["model"].get("init_args") or {}).items() if name in GREEDY}
    code = fingerprint_code(config, run.model, *interventions)
    own = {"class_path": type(run.data).__name__, "init_args": known_config(run.data)}
    data = RunRecord.of({"data": own}, run.data)
    shown = {name: each for name, each in data.options.items() if data.changes_answers(name)}
    key = fingerprint([fingerprint(run.model), code, shown, greedy, split])
    known = {} if file is None else {record["id"]: record for record in read_records([file])}
    truths = [
        run.data.source.benchmark.read_number(q.ground_truth) for s in run.data.scenes(split) for q in s.questions
    ]
    numbers = [number for number in truths if number is not None] or [-math.inf, math.inf]
    make = partial(Origin, run.data.source, split, read=partial(read_other, run), answers=(min(numbers), max(numbers)))
    found: dict[str, list[Record]] = {name_of(each): [] for each in interventions}
    failed: dict[str, str] = {}
    for number in progress(range(len(scenes)), "measure responses", "scenes"):
        scene, loaded = scenes[number], None
        for each in interventions:
            id = f"{key}/{name_of(each)}/{scene.name}"
            if id not in known:
                loaded = loaded or run.dataset[number]
                try:
                    questions = ask(run, each, make(scene=scene), loaded, greedy)
                except InputError as error:
                    failed[scene.name] = str(error)
                    continue
                known[id] = {"id": id, "scene": scene.name, "intervention": name_of(each), "questions": questions}
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    lines = JSONLines(file)
                    lines.append([known[id]])
                    lines.close()
            found[name_of(each)].append(known[id])
    if not any(record["questions"] for records in found.values() for record in records):
        reason = next(iter(failed.values()), "no variant of a scene counts")
        raise InputError(f"{run.folder}: nothing to measure in {len(scenes)} scenes: {reason}")
    if failed:
        print(f"{len(failed)} of {len(scenes)} scenes are left out: {next(iter(failed.values()))}")
    return found


def read_other(run: LoadedRun, scene: Scene) -> LoadedScene:
    """Read a scene that is not in the dataset as those are read.

    Raises:
        InputError: It can't be read.
    """
    loaded = run.data.dataset([scene], spec=run.dataset.spec)[0]
    if loaded.error is not None:
        raise InputError(loaded.error)
    return loaded


def ask(
    run: LoadedRun, intervention: Intervention, origin: Origin, loaded: LoadedScene, greedy: Mapping[str, Any]
) -> list[Record]:
    """Ask the questions of a scene that have a declared response about each of its variants.

    Returns:
        For each question its id and type, and for each variant what `sums_of` reads.

    Raises:
        InputError: The scene, or one of its variants, can't be read or asked.
    """
    if loaded.error is not None:
        raise InputError(loaded.error)
    benchmark, model = run.data.source.benchmark, run.model
    collate = QuestionCollate(run.dataset.spec, benchmark, poses_in_prompt=run.data.poses_in_prompt)
    candidates = {question.id: candidates_of(benchmark, intervention, question) for question in loaded.questions}
    asked = tuple(question for question in loaded.questions if candidates[question.id])
    found = {each.id: {"id": each.id, "question_type": each.question_type, "variants": []} for each in asked}
    for variant in intervention.variants(origin, replace(loaded, questions=asked)) if asked else ():
        batch = collate([variant.scene])
        for failure in batch.failed:
            raise InputError(f"{failure['scene']}: {failure['error']}")
        replies = model.score_candidates(batch, [candidates[record["id"]] for record in batch.records], **greedy)
        for question, reply in zip(asked, replies, strict=True):
            if reply.error is not None:
                raise InputError(f"{loaded.name}: {reply.error}")
            text = model.backbone.preprocessor.decode([reply.ids])[0]
            answer = answer_of(benchmark, intervention, question, candidates[question.id], reply, text, variant)
            found[question.id]["variants"].append(answer)
    return [each for each in found.values() if each["variants"]]


def candidates_of(benchmark: Benchmark, intervention: Intervention, question: Question) -> tuple[str, ...]:
    """Return the candidate answers to a question. Empty if its response to the intervention is not declared."""
    kind, found = question.question_type, benchmark.candidates(question.question_type, question.options)
    if kind not in benchmark.multiple_choice_types and intervention.expected(benchmark, kind) is None:
        return ()
    return tuple(each for each in found if each != "0") if intervention.measure == "exponent" else found


def answer_of(
    benchmark: Benchmark,
    intervention: Intervention,
    question: Question,
    candidates: Sequence[str],
    reply: Reply,
    text: str,
    variant: Variant,
) -> Record:
    """Return the answer to a question about a variant, as `sums_of` reads it.

    It is the mean over the candidates under their renormalized probabilities. For an exponent, numbers are logarithms.
    """
    covered = math.fsum(map(math.exp, reply.candidates))
    largest = max(reply.candidates)
    weights = [math.exp(each - largest) for each in reply.candidates]
    shares = [each / math.fsum(weights) for each in weights]
    answer: Record = {"value": variant.value, "truth": None, "answer": shares, "greedy": None, "covered": covered}
    if question.question_type in benchmark.multiple_choice_types:
        return answer
    is_exponent = intervention.measure == "exponent"
    told, truth = benchmark.read_number(text), variant.truth
    if is_exponent:
        told = math.log(told) if told is not None and told > 0 else None
    if variant.truth is None and (label := benchmark.read_number(question.ground_truth)) is not None:
        truth = label
        if is_exponent:
            exponent = intervention.expected(benchmark, question.question_type) or 0.0
            truth = math.log(label) + exponent * variant.value if label > 0 else None
    numbers = [math.log(float(each)) if is_exponent else float(each) for each in candidates]
    mean = math.fsum(share * number for share, number in zip(shares, numbers, strict=True))
    return {**answer, "truth": truth, "answer": mean, "greedy": told}


# ---- Responses -------------------------------------------------------------------------------------------------------


def pool(run: LoadedRun, intervention: Intervention, records: Sequence[Record]) -> Iterator[Response]:
    """Yield the response of each question type to an intervention."""
    benchmark = run.data.source.benchmark
    asked = {scene.name: Counter(q.question_type for q in scene.questions) for scene in run.dataset.scenes}
    for kind in benchmark.question_types:
        sums: dict[str, Sums] = {}
        for record in records:
            own = [each["variants"] for each in record["questions"] if each["question_type"] == kind]
            if own:
                each_question = [sums_of(intervention.measure, variants) for variants in own]
                sums[record["scene"]] = Sums(*map(sum, zip(*each_question, strict=True)))
        if sums:
            yield Response(
                name_of(intervention),
                kind,
                intervention.measure,
                kind in benchmark.multiple_choice_types,
                intervention.expected(benchmark, kind),
                unresponsive(run.model, intervention, run.data.poses_in_prompt),
                intervention.num_variants * sum(asked[record["scene"]][kind] for record in records),
                sums,
            )
