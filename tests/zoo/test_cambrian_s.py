"""Cambrian-S: golden cases of the published code, wrong readings of it, its released folders, and the tiny model."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2Tokenizer

from datamodules import chat_format
from datamodules.chat_format import ChatFormat
from datamodules.inference import batch_of_questions
from datamodules.scenes import Question, RawQuestion
from tests.golden.synth import synth_video
from tests.golden.weights_cambrian import init_cambrian_
from tests.tiny import QUESTIONS, logits_of, one_per_row, tiny_batch, tiny_scene
from tests.zoo.released import GOLDEN
from zoo import (
    AddFusion,
    AlternateAxes,
    ChannelRange,
    ConstantIndex,
    InputError,
    LowFrequencies,
    PoseAxis,
    PRoPE,
    SpatialVLM,
    TemporalSection,
    TinyVGGT,
)
from zoo.benchmarks import VSIBench
from zoo.cameras import SceneGeometry
from zoo.checkpoints import load_cambrian_s, official_parameters
from zoo.checkpoints.export import export_model, official_tensors, unofficial_parts
from zoo.published import cambrian_s
from zoo.published.cambrian_s import (
    PUBLISHED_ID,
    VISION,
    CambrianBackbone,
    CambrianPreprocessor,
    CambrianProcessor,
    OfficialCambrian,
    PretrainedCambrianS,
    TinyCambrianS,
    best_tiles,
    cambrian_grid,
    cambrian_names,
    cambrian_pixels,
    without_padding,
)
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.packing import IGNORED
from zoo.tasks import VideoQATask
from zoo.weights.load import read_config

HERE = GOLDEN / "cambrian_s"
CASES = sorted(path.stem for path in (HERE / "model").glob("*.json"))
TRAIN = sorted(path.stem for path in (HERE / "train").glob("*.json"))
SMALL: dict[str, Any] = dict(layers=2, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)
QUESTION = "How many chairs are there?"


def load_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((HERE / f"{name}.json").read_text()), load_file(HERE / f"{name}.safetensors")


def weights_of(meta: dict[str, Any]) -> dict[str, Tensor]:
    return {name: init_cambrian_(name, torch.empty(shape)) for name, shape in meta["param_names"].items()}


def config_of(meta: dict[str, Any]) -> dict[str, Any]:
    return meta["config"] | {"vision_config": meta["vision_config"]}


def built(meta: dict[str, Any]) -> OfficialCambrian:
    return load_cambrian_s(config_of(meta), weights_of(meta)).eval()


def media_of(meta: dict[str, Any]) -> list[Tensor]:
    videos = [(kind, synth_video(*sizes)) for kind, *sizes in meta["media"]]
    return [video[0] if kind == "image" else video for kind, video in videos]


# ---- Golden cases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_pixels_inputs_logits_and_answers_are_those_of_the_published_code(name: str) -> None:
    meta, t = load_case(f"model/{name}")
    media, ids, model = media_of(meta), t["input_ids"][0], built(meta)
    pixels = cambrian_pixels(media, config_of(meta))
    torch.testing.assert_close(pixels[..., 5::24, 7::24], t["pixels_strided"], atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels.double().mean((0, 1, 2)), t["pixels_column_mean"], atol=1e-6, rtol=0)
    with torch.no_grad():
        inputs, logits = model.inputs_of(ids, media), model.logits_of(ids, media)
    assert len(inputs) - len(ids) + len(media) == meta["visual_tokens"]
    torch.testing.assert_close(inputs, t["out_embeds"], atol=4e-5, rtol=0)
    bound = 4e-5 * max(1, float(t["out_logits"].square().mean().sqrt()) / 2)
    torch.testing.assert_close(logits, t["out_logits"], atol=bound, rtol=0)
    assert model.answer_of(ids, media, max_new_tokens=8) == t["out_generated"].tolist()


@pytest.mark.parametrize("name", TRAIN)
def test_losses_and_gradients_are_those_of_the_published_training(name: str) -> None:
    """With the published labels, which also cover marks of the chat around the answers."""
    meta, t = load_case(f"train/{name}")
    runs = [(key, list(run)) for key, run in groupby(t["input_ids"].tolist(), lambda each: each == PUBLISHED_ID)]
    ids = torch.tensor([each for is_medium, run in runs for each in (run[:1] if is_medium else run)])
    model = built(meta)
    logits = model.logits_of(ids, media_of(meta))
    torch.testing.assert_close(logits, t["out_logits"], atol=4e-5, rtol=0)
    loss = F.cross_entropy(logits[:-1], t["labels"][1:], ignore_index=IGNORED)
    torch.testing.assert_close(loss[None], t["out_loss"], atol=1e-5 * max(1, float(loss.detach())), rtol=0)
    loss.backward()
    gradients = {name: each.grad for name, each in official_parameters(model).items() if each.grad is not None}
    for key, value in t.items():
        if key.startswith("grad."):
            found = gradients[key.removeprefix("grad.")].double()
            torch.testing.assert_close(found, value, atol=1e-4 * float(value.abs().max()), rtol=0)
    for key, norm in meta["grad_l2_norms_f32"].items():
        if norm is None:
            assert key not in gradients
            continue
        assert float(gradients[key].norm()) == pytest.approx(norm, rel=2e-3, abs=1e-6), key  # keys' biases have none


def pooled_as(**options: Any) -> Callable[..., Tensor]:
    """`pooled_grid` with other options of the interpolation."""
    interpolate = F.interpolate

    def wrong(maps: Tensor, size: Any, **own: Any) -> Tensor:
        return interpolate(maps, size, **{**own, **options})

    return wrong


def without_cut(width: int, height: int, side: int) -> tuple[int, int]:
    return side, side


WRONG: dict[str, tuple[float, Callable[[pytest.MonkeyPatch], None]]] = {
    "padding kept": (0.32, lambda patch: patch.setattr(cambrian_s, "cambrian_grid", without_cut)),
    "no token after rows": (0.84, lambda patch: patch.setattr(CambrianBackbone, "row_token", None)),
    "antialiased pooling": (0.24, lambda patch: patch.setattr(F, "interpolate", pooled_as(antialias=True))),
    "corners aligned": (0.20, lambda patch: patch.setattr(F, "interpolate", pooled_as(align_corners=True))),
    "behind the last norm": (0.96, lambda patch: None),
}


@pytest.mark.parametrize("reading", WRONG)
def test_a_wrong_reading_gives_other_logits(reading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By as much as the readings differ in an implementation of the data's authors."""
    meta, t = load_case("model/video_640x480")
    expected, change = WRONG[reading]
    change(monkeypatch)
    model = built(meta)
    tower = model.backbone.vlm.model.vision_tower
    if reading == "behind the last norm":
        tower.encoder.register_forward_hook(
            lambda _, __, out: replace(out, last_hidden_state=tower.post_layernorm(out.last_hidden_state))
        )
    with torch.no_grad():
        logits = model.logits_of(t["input_ids"][0], media_of(meta))
    assert float((logits[-5:] - t["out_logits"][-5:]).abs().max()) == pytest.approx(expected, abs=0.0051)


def test_grids_of_pictures_are_those_of_the_published_code() -> None:
    for row in json.loads((HERE / "text/frames.json").read_text())["tokens"]:
        for count in (64, 196, 729):
            side, own = round(count**0.5), row[str(count)]
            rows, columns = cambrian_grid(row["width"], row["height"], side)
            assert (rows, columns) == (own["rows"], own["columns"]), row
            assert rows * (columns + 1) == own["tokens"]


@pytest.mark.parametrize(
    ("width", "height", "tiles", "grid"),
    [
        (384, 384, (1, 1), (8, 8)),  # the same square again
        (500, 300, (1, 2), (8, 14)),
        (300, 500, (2, 1), (14, 8)),
        (768, 390, (2, 2), (8, 16)),  # the published rule rounds the second row of tiles away
        (4000, 3000, (3, 3), (18, 24)),
    ],
)
def test_tiles_of_an_image_keep_most_of_its_pixels(
    width: int, height: int, tiles: tuple[int, int], grid: tuple[int, int]
) -> None:
    """The tokens are those of the overview and of the grid that all tiles make together."""
    assert best_tiles(width, height, 384, 9) == tiles
    assert without_padding(width, height, *(8 * each for each in tiles)) == grid
    picture = synth_video(3, 1, height, width)[0]
    meta, t = load_case("model/one_image_anyres")
    with torch.no_grad():
        inputs = built(meta).inputs_of(t["input_ids"][0], [picture])
    overview = cambrian_grid(width, height, 8)
    tokens = sum(rows * (columns + 1) for rows, columns in (overview, grid))
    assert len(inputs) == t["input_ids"].shape[1] - 1 + tokens


def test_a_picture_of_which_no_token_is_left_is_refused() -> None:
    preprocessor = TinyCambrianS().load().preprocessor
    with pytest.raises(InputError, match="10 x 1000 pixels is too narrow for 2 x 2 tokens"):
        preprocessor.cut_patches(torch.zeros(2, 3, 1000, 10, dtype=torch.uint8))


# ---- Prompts ---------------------------------------------------------------------------------------------------------

CHATS = ChatFormat(TinyCambrianS().load().preprocessor)


def published(text: str) -> str:
    return text.replace("<|image_pad|>", "<image>")


def test_prompts_are_those_of_the_published_evaluation() -> None:
    chats = replace(CHATS, benchmark=VSIBench().with_prompt("These are frames of a video.", None, None))
    for row in json.loads((HERE / "text/prompts.json").read_text())["evaluation"]:
        question = Question("q", row["question_type"], row["question"], "", tuple(row["options"] or ()))
        assert published(chats.chat(question, [[{"type": "image"}]])[0]) == row["text"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"<image>\n{QUESTION}", f"<image>\n{QUESTION}"),
        (f"<image>{QUESTION}", f"<image>\n{QUESTION}"),
        (QUESTION, f"<image>\n{QUESTION}"),
    ],
)
def test_a_line_ends_behind_the_frames(text: str, shown: str) -> None:
    """Whether or not the text has the end of the line itself. All frames are one mark of the published code."""
    (prompt,) = CHATS.chat(RawQuestion("q", "", text), [[{"type": "image"}]])
    assert published(prompt).split("user\n")[1] == f"{shown}<|im_end|>\n<|im_start|>assistant\n"
    (both,) = CHATS.chat(RawQuestion("q", "", text), [[{"type": "image"}, {"type": "image"}]])
    assert both.count("<|image_pad|><|image_pad|>\n") == 1 and "\n\n" not in both


@pytest.fixture(scope="module")
def qwen_tokenizer() -> Qwen2Tokenizer:
    if "ZOO_REALDATA" not in os.environ:
        pytest.skip("ZOO_REALDATA names no folder with Qwen's tokenizer")
    return Qwen2Tokenizer.from_pretrained(Path(os.environ["ZOO_REALDATA"]) / "qwen2.5-vl")


@pytest.mark.parametrize("row", json.loads((HERE / "text/prompts.json").read_text())["training"], ids=str)
def test_supervised_tokens_are_those_of_the_published_training(
    row: dict[str, Any], qwen_tokenizer: Qwen2Tokenizer
) -> None:
    """If that is asked for. By default these are the answers and their ends alone, which train fewer tokens."""
    turns = [turn["value"] for turn in row["conversations"][row["conversations"][0]["from"] == "gpt" :]]
    (text, answer), *later = zip(turns[::2], turns[1::2], strict=True)
    question = RawQuestion("q", "", text, answer, later_turns=tuple(later))
    preprocessor = CambrianPreprocessor(CambrianProcessor.of(qwen_tokenizer), side=56, token_side=2)
    texts = ChatFormat(preprocessor).chat(question, [[{"type": "image"}]], with_answers=True)
    plain = preprocessor.tokenize(texts, [(1, 2, 2)], ExtraTokens.NONE)
    preprocessor.supervises_marks = True
    made = preprocessor.tokenize(texts, [(1, 2, 2)], ExtraTokens.NONE)
    image = qwen_tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert [PUBLISHED_ID if id == image else id for id in made.input_ids.tolist()] == row["input_ids"]
    assert made.labels.tolist() == row["labels"]
    answers = [id for turn in turns[1::2] for id in qwen_tokenizer(f"{turn}<|im_end|>\n")["input_ids"]]
    assert plain.labels[plain.labels != IGNORED].tolist() == answers
    assert torch.equal(plain.input_ids, made.input_ids) and len(answers) < int((made.labels != IGNORED).sum())


def test_a_training_with_supervised_marks_learns_from_all_of_their_tokens() -> None:
    """The loss is the mean over the tokens of a batch. The control: that of the answers alone."""
    losses, scene = {}, still("a", 2, 2, 0)
    for marks in (True, False):
        loader = TinyCambrianS(**SMALL, supervises_marks=marks, seed=0)
        task = VideoQATask(backbone=loader, average="micro_batch_tokens")
        batch, logits, labels = tiny_batch(task, scene, training=True), [], []
        assert batch.sequences is not None
        assert len(batch.sequences.lengths) == (2 if marks else 1)  # marks before the images belong to each question
        for question in scene.questions:
            texts = ChatFormat(task.preprocessor).chat(question, chat_format.media_of(scene), with_answers=True)
            row = task.preprocessor.tokenize(texts, batch.scenes[0].media_grids, task.model.extra_tokens)
            ids = row.input_ids[None]
            made = task.model.sequence_builder.build(ids, torch.ones_like(ids).bool(), batch.scenes, [[0]])
            inputs = task.model.decoder_inputs(task.model.encode_scenes(batch), made)
            logits.append(logits_of(task, inputs)[0, :-1])
            labels.append(row.labels[1:])
        losses[marks] = task.model(batch)["loss"]
        expected = F.cross_entropy(torch.cat(logits), torch.cat(labels), ignore_index=IGNORED)
        torch.testing.assert_close(losses[marks], expected, atol=1e-5, rtol=0)
    assert (losses[True] - losses[False]).abs() > 1e-3


def test_a_video_as_such_is_refused() -> None:
    with pytest.raises(InputError, match="sees each frame as an image: set --data.frames_as image"):
        CHATS.chat(RawQuestion("q", "", QUESTION))


# ---- The tiny model --------------------------------------------------------------------------------------------------


def still(name: str, questions: int, steps: int, seed: int) -> Any:
    """A scene whose frames are images."""
    scene = tiny_scene(name, QUESTIONS[:questions], steps, seed)
    return replace(scene, kind="image", frame_indices=tuple(range(2 * steps)))


def test_questions_that_share_a_sequence_train_as_one_per_row_with_cameras_as_well() -> None:
    """The control: other cameras. The tokens after the rows have none."""
    task = VideoQATask(backbone=TinyCambrianS(**SMALL), camera_encoding=PRoPE(ChannelRange(0, 0.5)))
    scenes = [still("a", 3, 2, 0), still("b", 1, 3, 1)]
    packed, apart = tiny_batch(task, *scenes, training=True), one_per_row(task, *scenes)
    assert packed.sequences is not None and apart.sequences is not None
    assert len(packed.sequences.lengths) == 2 and len(apart.sequences.lengths) == 4
    per_scene = [scene.num_steps * scene.token_grid[1] for scene in packed.scenes]  # tokens after rows
    assert sum(per_scene) == len(packed.sequences.visual_places) - len(packed.sequences.grid_places) > 0
    assert int((packed.sequences.camera_index >= 0).sum()) == len(packed.sequences.grid_places)
    loss = task.model.requires_grad_(True)(packed)["loss"]
    torch.testing.assert_close(loss, task.model(apart)["loss"], atol=1e-5, rtol=0)
    loss.backward()
    for name, each in task.model.named_parameters():
        assert (each.grad is None) == task.model.is_unreachable(name), name
    assert [name for name, _ in task.model.named_parameters() if task.model.is_unreachable(name)] == [
        f"backbone.vlm.model.vision_tower.post_layernorm.{part}" for part in ("weight", "bias")
    ]
    others = [replace(each, geometry=tiny_scene("c", (), 3, 7).geometry[: len(each.frames)]) for each in scenes]
    assert (task.model(tiny_batch(task, *others, training=True))["loss"] - loss).abs() > 1e-4


def test_states_of_views_leave_out_the_tokens_after_rows() -> None:
    task = VideoQATask(backbone=TinyCambrianS(**SMALL))
    batch = tiny_batch(task, still("a", 2, 2, 0), still("b", 1, 3, 1), training=True)
    scenes = task.model.encode_scenes(batch)
    inputs = task.model.decoder_inputs(scenes, batch.sequences)["inputs_embeds"]
    decoded = task.model.hidden_states(scenes, batch.sequences)
    for scene, states in decoded.views_of(inputs):
        assert torch.equal(states[0], scene.visual.tokens)
    newline = task.model.backbone.row_token
    flat, sequences = inputs.flatten(0, 1), batch.sequences
    is_grid = torch.isin(sequences.visual_places, sequences.grid_places)
    assert all(torch.equal(flat[place], newline) for place in sequences.visual_places[~is_grid])


def test_answers_of_a_cached_prefix_are_those_of_one_pass() -> None:
    model = SpatialVLM(TinyCambrianS(**SMALL)).eval()
    frames = torch.randint(0, 256, (3, 3, 45, 61), dtype=torch.uint8, generator=torch.manual_seed(0))
    texts = [QUESTION, "Which is nearer, the table or the sofa?"]
    together = model.answer(frames, texts, max_new_tokens=6)
    assert together == [model.answer(frames, text, max_new_tokens=6) for text in texts]
    batch = batch_of_questions(model, frames, [QUESTION], None, None, None)
    (prompt,) = batch.prompts
    ids = torch.cat((prompt.prefix.input_ids[0], torch.tensor(prompt.passes[0][0])))
    for _ in range(3):
        made = model.sequence_builder.build(ids[None], torch.ones_like(ids[None]).bool(), batch.scenes, [[0]])
        with torch.no_grad():
            inputs = model.decoder_inputs(model.encode_scenes(batch), made)
            best = model.backbone.lm_head(model.backbone.decode(inputs).last_hidden_state)[0, -1].argmax()
        ids = torch.cat((ids, best[None]))
    found = model.backbone.preprocessor.decode([ids[-3:].tolist()])[0]
    assert model.answer(frames, QUESTION, max_new_tokens=3) == found


@pytest.mark.parametrize(
    "parts",
    [
        {"camera_encoding": PRoPE(TemporalSection())},
        {"camera_encoding": PoseAxis()},
        {"camera_encoding": PRoPE(AlternateAxes([LowFrequencies(4, "w"), LowFrequencies(4, "h")]))},
    ],
    ids=["TemporalSection", "PoseAxis", "AlternateAxes"],
)
def test_encodings_on_sections_of_mrope_are_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="this backbone's positions have one axis"):
        SpatialVLM(TinyCambrianS(**SMALL), **parts)


def test_a_time_index_is_refused() -> None:
    with pytest.raises(InputError, match="--model.time_index ConstantIndex: this backbone's positions have one axis"):
        SpatialVLM(TinyCambrianS(**SMALL), time_index=ConstantIndex())


# ---- Released folders ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the family, with the head that predicts the next frame."""
    folder = tmp_path_factory.mktemp("cambrian") / "release"
    export_model(SpatialVLM(TinyCambrianS(**SMALL)), folder)
    head = {"model.nfp_head.0.weight": torch.ones(2, 2)}
    save_file(load_file(folder / "model.safetensors") | head, folder / "model.safetensors")
    return folder


def test_a_folder_is_loaded_and_exported_bit_for_bit(release: Path, tmp_path: Path) -> None:
    config, tensors = read_config(release), load_file(release / "model.safetensors")
    assert config["model_type"] == "cambrian_qwen" and config["architectures"] == ["CambrianQwenForCausalLM"]
    assert "lm_head.weight" not in tensors and f"{VISION}post_layernorm.weight" in tensors
    with pytest.warns(UserWarning, match="model.nfp_head predicts the next frame in training, and is not") as said:
        model = SpatialVLM(PretrainedCambrianS(str(release), dtype="float32"))
    assert len([each for each in said if "nfp_head" in str(each.message)]) == 1
    assert isinstance(SpatialVLM.from_pretrained(release).loader, PretrainedCambrianS)
    assert model.is_pretrained and unofficial_parts(model) == []
    export_model(model, tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert read_config(tmp_path / "again") == config
    frames = torch.randint(0, 256, (3, 3, 45, 61), dtype=torch.uint8, generator=torch.manual_seed(0))
    assert isinstance(model.answer(frames, QUESTION, max_new_tokens=4), str)


@pytest.mark.parametrize("name", ["cambrian_s_0_5b", "cambrian_s_7b_lfp"])
def test_names_and_shapes_are_those_of_the_manifest(name: str) -> None:
    manifest = json.loads((HERE / f"manifests/{name}.json").read_text())
    found = cambrian_names(manifest["config"])
    assert {name: list(shape) for name, shape in found.items()} == manifest["tensors"]
    released = {"cambrian_s_0_5b": "Cambrian-S-0.5B", "cambrian_s_7b_lfp": "Cambrian-S-7B-LFP"}[name]
    with torch.device("meta"):
        model = SpatialVLM(PretrainedCambrianS(f"nyu-visionx/{released}"))
    loaded = {name: shape for name, shape in manifest["tensors"].items() if ".nfp_head." not in name}
    own = official_tensors(model)
    assert own.keys() == loaded.keys() and all(list(own[name].shape) == loaded[name] for name in own)
    table = PretrainedCambrianS.backbone_names()
    assert all(table.official(*table.current(name)) == name for name in loaded)


def test_the_vision_encoder_may_be_that_of_siglip2(
    release: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line says which it is. SigLIP2's last layer and its heads are not read. The control: without the option."""
    tensors = load_file(release / "model.safetensors")
    vision = {name: each for name, each in tensors.items() if name.startswith(VISION)}
    siglip = {name.replace(VISION, "vision_model."): 2 * each for name, each in vision.items()}
    more = {f"vision_model.{part}.weight": torch.ones(2) for part in ("encoder.layers.2.mlp.fc1", "head.mlp.fc1")}
    (tmp_path / "siglip2").mkdir()
    save_file(siglip | more | {"text_model.head.bias": torch.ones(2)}, tmp_path / "siglip2/model.safetensors")
    path = str(tmp_path / "siglip2")
    with caplog.at_level(logging.INFO):
        for folder, factor in ((path, 2), (None, 1)):
            model = SpatialVLM(PretrainedCambrianS(str(release), dtype="float32", vision_path=folder))
            assert f"the vision encoder is that of {folder or release}" in caplog.text
            caplog.clear()
            found = official_tensors(model)
            for name, each in found.items():
                assert torch.equal(each, factor * tensors[name] if name in vision else tensors[name]), name
            assert len(model.loader.files) == factor
    del siglip["vision_model.encoder.layers.1.mlp.fc1.bias"]
    save_file(siglip, tmp_path / "siglip2/model.safetensors")
    with pytest.raises(InputError, match=f"1 missing: {VISION}encoder.layers.1.mlp.fc1.bias"):
        PretrainedCambrianS(str(release), vision_path=path).load()


def test_a_missing_tensor_is_named_and_others_may_be_absent_or_present() -> None:
    meta, t = load_case("model/video_portrait_tied")
    weights, config = weights_of(meta), config_of(meta)
    ids, media = t["input_ids"][0], media_of(meta)
    spare = {"lm_head.weight": weights["model.embed_tokens.weight"], "model.nfp_head.0.weight": torch.ones(2, 2)}
    plain = load_cambrian_s(config, {name: each for name, each in weights.items() if name not in spare})
    with torch.no_grad():
        assert torch.equal(plain.logits_of(ids, media), load_cambrian_s(config, weights | spare).logits_of(ids, media))
    for name in ("model.image_newline", "model.mm_projector.2.bias", f"{VISION}encoder.layers.1.mlp.fc1.bias"):
        with pytest.raises(InputError, match=f"1 missing: {name}"):
            load_cambrian_s(config, {key: each for key, each in weights.items() if key != name})


def changed_release(release: Path, folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    """Copy a folder with other tensors and settings. Empty tensors are left out."""
    copytree(release, folder)
    own = load_file(release / "model.safetensors") | tensors
    save_file({name: each for name, each in own.items() if each.numel()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(read_config(release) | settings))
    return folder


NONE = torch.empty(0)  # in place of a tensor that a file lacks
EMBEDDINGS = "model.embed_tokens.weight"
DAMAGED: dict[str, tuple[dict[str, Tensor], dict[str, Any], str]] = {
    "rows": ({EMBEDDINGS: torch.ones(1000, 64)}, {}, rf"1 misshapen: {EMBEDDINGS} \[1000, 64\] instead of"),
    "width": ({}, {"hidden_size": 96, "num_attention_heads": 3}, "misshapen: .*image_newline"),
    "layers": ({}, {"num_hidden_layers": 3}, "12 missing: model.layers.2"),
    "projector": (
        {f"model.mm_projector.{layer}.{kind}": NONE for layer in (0, 2) for kind in ("weight", "bias")},
        {},
        "4 missing: model.mm_projector.0.weight",
    ),
    "another part": ({"model.depth_head.weight": torch.ones(2)}, {}, "1 unexpected: model.depth_head.weight"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_weights_that_do_not_fit_are_refused_in_one_line(name: str, release: Path, tmp_path: Path) -> None:
    tensors, settings, message = DAMAGED[name]
    with pytest.raises(InputError, match=f"the weights don't fit this Cambrian-S: .*{message}") as error:
        PretrainedCambrianS(str(changed_release(release, tmp_path / "damaged", tensors, **settings))).load()
    assert "\n" not in str(error.value)


def test_embeddings_may_have_more_rows_than_the_tokenizer_has_tokens(release: Path, tmp_path: Path) -> None:
    """As in the released 7B. Rows that no token has change no input."""
    rows = load_file(release / "model.safetensors")[EMBEDDINGS]
    longer = torch.cat((rows, torch.zeros(399, 64)))
    folder = changed_release(release, tmp_path / "longer", {EMBEDDINGS: longer}, vocab_size=len(longer))
    frames = torch.randint(0, 256, (2, 3, 45, 61), dtype=torch.uint8, generator=torch.manual_seed(0))
    own, same = (SpatialVLM.from_pretrained(each).eval() for each in (folder, release))
    assert own.answer(frames, QUESTION, max_new_tokens=4) == same.answer(frames, QUESTION, max_new_tokens=4)
    assert torch.equal(official_tensors(own)[EMBEDDINGS], longer.bfloat16())


@pytest.mark.parametrize("setting", [{"mm_use_im_newline_token": False}, {"mm_projector_type": "linear"}])
def test_variants_that_were_not_released_are_refused(setting: dict[str, Any]) -> None:
    meta, _ = load_case("model/video_640x480")
    with pytest.raises(InputError, match=f"{next(iter(setting))} .* in the config: only"):
        load_cambrian_s(config_of(meta) | setting, weights_of(meta))


# ---- What the tokens show --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(640, 480), (500, 300), (360, 640), (64, 64), (337, 336)])
def test_the_rays_of_cells_are_those_of_the_square_of_the_vision_encoder(width: int, height: int) -> None:
    """Whatever is cut off. The control: the intrinsics of the whole picture."""
    side, longer = 8, max(width, height)
    preprocessor = TinyCambrianS(image_size=112, frame_tokens=side**2).load().preprocessor
    _, (_, *patches) = preprocessor.cut_patches(torch.zeros(2, 3, height, width, dtype=torch.uint8))
    K = torch.tensor([[[0.9, 0.0, 0.02], [0.0, 1.2, -0.01], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    cropped = preprocessor.shown_window(height, width).crop(SceneGeometry(K_normalized=K)).K_normalized

    def rays(K: Tensor, places: Tensor, axis: int) -> Tensor:
        return (places - 0.5 - K[0, axis, 2]) / K[0, axis, axis]

    for axis, length in enumerate((width, height)):
        count = int(patches[1 - axis]) // 2
        cells = torch.arange(count, dtype=torch.float64) + 0.5
        in_square = ((side - count) // 2 + cells) / side * longer
        expected = rays(K, (in_square - (longer - length) // 2) / length, axis)
        torch.testing.assert_close(rays(cropped, cells / count, axis), expected, atol=1e-9, rtol=0)
    assert torch.allclose(cropped, K, atol=1e-9) == ((width, height) in ((640, 480), (64, 64)))


def test_a_geometry_encoder_sees_the_part_that_the_tokens_show() -> None:
    """In patches under the tokens. Rows of one color tell where they are."""
    model = SpatialVLM(
        TinyCambrianS(**SMALL, image_size=112, frame_tokens=64),
        geometry=partial(TinyVGGT, embed_dim=32, num_heads=2),
        fusion=AddFusion,
    ).eval()
    rows = torch.arange(300).div(300, rounding_mode=None) * 255
    frames = rows[None, None, :, None].expand(3, 3, 300, 500).round().to(torch.uint8)
    (scene,) = batch_of_questions(model, frames, [QUESTION], None, None, None).scenes
    assert scene.token_grid == (3, 4, 8) and scene.frames.shape == (6, 3, 4 * 28, 8 * 28)
    # 4 of 8 rows of a square of 500: 250 of the picture's 300 rows, from 25 on
    expected = (25 + (torch.arange(112) + 0.5) * 250 / 112) / 300 * 255
    assert (scene.frames[0, 0, :, 0].float() - expected).abs().max() < 2
    assert isinstance(model.answer(frames, QUESTION, max_new_tokens=2), str)
