"""python main.py doctor: what this machine lacks for a training, before the training costs a night.

    python main.py doctor
    python main.py doctor --config spatial_mllm.yaml --config scale_3b.yaml --config recipes/spatial_mllm_135k.yaml
    python main.py doctor --config spatial_mllm.yaml --config scale_3b.yaml --config data_vsibench.yaml --split test

Without a config the command describes the machine: GPUs, driver, PyTorch, packages with fast kernels, FFmpeg, memory
and disk. With the options of `fit` it also checks what they name. The attention of each part runs on small tensors of
the model's heads and dtype, with and without a mask, and the kernel that PyTorch took is printed. All weight files are
opened, which finds a download that broke off. Questions are counted against the videos that are there, and the first
and the last video are decoded. `--split test` checks the data of a test instead.

Problems come first, each with its remedy. With a problem, the training would fail, and the exit status is 1. A warning
is a training that would be slow or might fail later. Nothing is downloaded.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import torch

from commands.machine import COPIES, Finding, Grade, attempt, checkpoint_size, examine_disk, examine_machine
from zoo.attention_kernels import MATH, count_kernels
from zoo.errors import InputError, describe

PACKAGES = {  # module: package, and what the training lacks without it
    "flash_attn": ("flash-attn", "for attn_implementation flash_attention_2: pip install 'spatial-vlm-zoo[flash]'"),
    "kernels": ("kernels", "for kernels of the hub, such as kernels-community/flash-attn2: pip install kernels"),
    "fla": ("flash-linear-attention", "for Qwen3.5: pip install 'spatial-vlm-zoo[deltanet]'"),
    "causal_conv1d": ("causal-conv1d", "for Qwen3.5: pip install 'spatial-vlm-zoo[deltanet]'"),
    "bitsandbytes": ("bitsandbytes", "for --model.lora.quantization: pip install 'spatial-vlm-zoo[qlora]'"),
    "triton": ("triton", "for --model.compile_decoder and flex_attention: pip install triton"),
}
CODECS = ("h264", "hevc", "vp9", "mpeg4")  # of the videos of spatial datasets
UNPROBED = {"flex_attention": "compiled in the first step", "eager": "no fused kernel, all scores are kept in memory"}
TOKENS = 128  # length of the probe's sequences


def doctor(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `doctor`, with config names resolved.

    Raises:
        InputError: A training, or a test, would fail.
    """
    findings = [*examine_machine(), *examine_packages(), *examine_ffmpeg()]
    has_config = any(not word.startswith("--traceback") for word in arguments)
    if has_config and not any(finding.grade == "problem" and "PyAV" in finding.text for finding in findings):
        findings += examine_config(arguments)
    order = get_args(Grade)
    for finding in sorted(findings, key=lambda each: order.index(each.grade)):
        print(f"{finding.grade:<8} {finding.text}")
    if count := sum(finding.grade == "problem" for finding in findings):
        raise InputError(f"{count} problem{'s' * (count > 1)}: see above")


# ---- Packages --------------------------------------------------------------------------------------------------------


def examine_packages() -> Iterator[Finding]:
    """Import each package with fast kernels, because an installed one may not fit PyTorch or the GPU."""
    for module, (package, purpose) in PACKAGES.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            yield Finding("absent", f"{package}, {purpose}")
            continue
        try:
            import_module(module)
        except Exception as error:  # of compiled code
            again = f"install the build for PyTorch {torch.__version__}, or pip uninstall {package}"
            yield Finding("warning", f"{package} {found}: can't be imported ({describe(error)}): {again}")
        else:
            yield Finding("ok", f"{package} {found}: installed, and can be imported")


def examine_ffmpeg() -> Iterator[Finding]:
    """Import PyAV, write a short video with its FFmpeg, and read it."""
    remedy = "pip install --force-reinstall --only-binary av av"
    try:
        import av
        import numpy as np

        absent = [codec for codec in CODECS if codec not in av.codec.codecs_available]
        libraries = ".".join(map(str, av.library_versions["libavcodec"]))
        file = BytesIO()  # not on a disk, which may be full
        with av.open(file, "w", format="mp4") as container:
            stream: Any = container.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for _ in range(4):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
            container.mux(stream.encode())
        file.seek(0)
        with av.open(file, "r") as clip:
            count = sum(1 for _ in clip.decode(video=0))
        if count != 4:
            raise RuntimeError(f"{count} of 4 frames are read again")
    except Exception as error:  # of compiled code
        yield Finding("problem", f"FFmpeg: PyAV can't read a video ({describe(error)}): {remedy}")
        return
    if absent:
        yield Finding("warning", f"FFmpeg: PyAV {av.__version__} can't read {', '.join(absent)}: {remedy}")
    yield Finding("ok", f"FFmpeg: libavcodec {libraries} of PyAV {av.__version__} writes and reads a video")


# ---- What a command line needs ---------------------------------------------------------------------------------------


def examine_config(arguments: list[str]) -> Iterator[Finding]:
    """Yield what the training of a command line lacks.

    Args:
        arguments: The options of `fit`, with `--split`.
    """
    with _offline():
        try:
            parts = _build(arguments)
        except InputError as error:
            yield Finding("problem", f"config: {error}")
            return
        device = torch.device("cpu")
        try:
            device = _choose_device(parts.trainer)
        except Exception as error:  # Lightning's
            asked = f"--trainer.accelerator {parts.trainer.accelerator} --trainer.devices {parts.trainer.devices}"
            yield Finding("problem", f"{asked}: {describe(error)}: auto takes what there is")
        task, split = parts.model, parts.split
        yield from attempt(_examine_weights(task), "weights")
        if model := getattr(task, "model", None):
            yield from attempt(examine_attention(model.backbone, parts.precision, device), "attention")
        yield from attempt(_examine_data(parts), f"data, {split}")
        if split == "train":
            folder = Path(parts.trainer.default_root_dir or "runs")
            yield examine_disk("checkpoints", folder, COPIES * checkpoint_size(task))
            if model:
                yield from attempt(_examine_memory(arguments, device), "memory")


@contextmanager
def _offline() -> Iterator[None]:
    """Read from the hub's cache alone."""
    from huggingface_hub import constants

    is_offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = is_offline


def _choose_device(trainer: Any) -> torch.device:
    """Return the device of the Trainer's first process. Lightning raises if the machine lacks what it asks for."""
    from lightning import Fabric

    return Fabric(accelerator=trainer.accelerator, devices=trainer.devices, num_nodes=trainer.num_nodes).device


def _build(arguments: list[str]) -> Any:
    """Build the task by shapes only, and the DataModule. No weights are read."""
    from lightning import Trainer

    from commands.parser import build, parse
    from commands.runs import require_model
    from commands.scene_commands import OF_RUNS, run_parser
    from datamodules import VideoQADataModule
    from datamodules.sources.base import Split
    from zoo.tasks.base import Task

    parser = run_parser("doctor", __doc__, (name for name in OF_RUNS if name != "trainer"))
    parser.add_argument("--seed_everything", type=int | bool, default=0, help="the run's seed")
    parser.add_argument("--split", type=Split, default="train", help="train, or test for the data of a test")
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.add_subclass_arguments(Task, "model", fail_untyped=False, required=True)
    parser.add_subclass_arguments(VideoQADataModule, "data", fail_untyped=False, required=True)
    settings = parse(parser, arguments)
    require_model(settings)
    trainer = settings.pop("trainer")
    if "geometry_cache" in settings.model.init_args:
        settings.model.init_args.geometry_cache = None  # it would read the encoder's weights
    with torch.device("meta"):
        parts = build(parser, settings)
    precision = str(trainer.precision or "32-true")
    return SimpleNamespace(
        model=parts.model, data=parts.data, split=settings.split, trainer=trainer, precision=precision
    )


def _examine_weights(task: Any) -> Iterator[Finding]:
    """Open all files of released weights."""
    model = getattr(task, "model", task)
    named = {
        "--model.backbone.path": getattr(getattr(model, "loader", None), "released_path", None),
        "--model.geometry.path": getattr(getattr(model, "geometry", None), "path", None),
    }
    for option, path in named.items():
        if path is not None:
            yield from attempt(_examine_folder(option, path), f"weights, {option} {path}")


def _examine_folder(option: str, path: str) -> Iterator[Finding]:
    """Open the weights of a local folder, of a file, or of a hub id that was downloaded before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from zoo.weights.load import StoredTensors

    local = Path(path).expanduser()
    if not local.exists():
        repository = "/".join(path.split("/")[:2])
        fetched = (
            f"hf download {repository}, or with --local-dir weights/{local.name} and {option} weights/{local.name}"
        )
        try:
            local = Path(snapshot_download(repository, local_files_only=True), *path.split("/")[2:])
        except (LocalEntryNotFoundError, HFValidationError):
            yield Finding("problem", f"weights: {option} {path} is not on this machine: {fetched}")
            return
    tensors = StoredTensors(lambda: local)
    tensors.check()
    size = sum(file.stat().st_size for file in tensors.files)
    files = f"{len(tensors.files)} files" if len(tensors.files) > 1 else "1 file"
    yield Finding(
        "ok", f"weights: {option} {local}: {len(tensors)} tensors in {files}, {size / 1e9:.2f} GB, all can be opened"
    )


def examine_attention(backbone: Any, precision: str, device: torch.device) -> Iterator[Finding]:
    """Run the attention of decoder and vision encoder on small tensors, and yield which kernels PyTorch takes.

    Args:
        backbone: A `Backbone`, which may be on the meta device.
        precision: The Trainer's precision.
        device: The device of the training.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from zoo.faulty_kernels import avoid_faulty_cudnn
    from zoo.precision import AUTOCAST

    avoid_faulty_cudnn()
    text, vision = backbone.decoder.config, backbone.vlm.config.vision_config
    vision_heads = getattr(vision, "num_heads", None) or vision.num_attention_heads  # of Qwen, and of SigLIP
    stored = {backbone.part_of(name): weight.dtype for name, weight in reversed([*backbone.named_parameters()])}
    shared = text.num_attention_heads // text.num_key_value_heads
    visible = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool, device=device).tril()
    decoder = (text.num_attention_heads, text.num_key_value_heads, backbone.head_layout.dim, text, stored["decoder"])
    cases = {  # heads, key and value heads, channels, config, dtype of the weights, mask, whether it is causal
        "decoder, one question in a sequence": (*decoder, None, True),
        "decoder, several questions in a sequence": (*decoder, visible, True),
        "vision encoder": (
            *(vision_heads, vision_heads, vision.hidden_size // vision_heads),
            *(vision, stored["vision"], None, False),
        ),
    }
    for part, (heads, kept, channels, config, dtype, mask, is_causal) in cases.items():
        name, dtype = config._attn_implementation, AUTOCAST.get(precision, dtype)
        if mask is not None and not backbone.packs_questions:
            continue
        if name in UNPROBED:
            yield Finding("ok", f"attention: {part}: {name}, {UNPROBED[name]}")
            continue
        q, k, v = (
            torch.randn(1, count, TOKENS, channels, dtype=dtype, device=device, requires_grad=True)
            for count in (heads, kept, kept)
        )
        module = SimpleNamespace(
            num_key_value_groups=shared if kept < heads else 1, is_causal=is_causal, training=True, config=config
        )
        with count_kernels() as found:
            ALL_ATTENTION_FUNCTIONS[name](
                module, q, k, v, mask, dropout=0.0, scaling=channels**-0.5, is_causal=is_causal
            )[0].sum().backward()
        shape = f"{heads} heads of {channels} channels in {str(dtype).removeprefix('torch.')} on {device.type}"
        is_slow = device.type == "cuda" and (MATH in found or not found)
        advice = "it keeps all scores in memory: set --trainer.precision bf16-mixed, or another attn_implementation"
        yield Finding(
            "warning" if is_slow else "ok",
            f"attention: {part}: {name} takes {' and '.join(found) or 'no fused kernel'}, {shape}"
            + (f": {advice}" if is_slow else ""),
        )


def _examine_data(parts: Any) -> Iterator[Finding]:
    """Count questions and videos of the splits that the command reads, and decode the first and the last video."""
    from datamodules.scenes import file_size
    from datamodules.sources.rooms.source import RenderedScenes
    from datamodules.video import Video

    task, data = parts.model, parts.data
    data.spec = data.training_spec = task.model_spec(training=True) if parts.split == "train" else task.model_spec()
    splits: list[Any] = [parts.split]
    if parts.split == "train" and getattr(task, "answers_questions", True) and parts.trainer.limit_val_batches != 0:
        splits = ["train", "val"]
    if isinstance(data.source, RenderedScenes) and not data.source.folder.exists():
        yield Finding("ok", f"data: rooms are rendered into {data.source.folder} when the run begins")
        return
    for split in splits:
        data.prepare_splits((split,))
        scenes = data.scenes(split)
        asked, lost = sum(len(scene.questions) for scene in scenes), sum(data.missing.values())
        counts = f"data, {split}: {asked} questions about {len(scenes)} videos or sets of images are there"
        is_complete = not data.missing
        if not is_complete:
            counts += f", and {lost} questions about {len(data.missing)} are missing"
        yield Finding(
            "ok" if is_complete else "warning", counts + ("" if is_complete else f", {next(iter(data.missing))} first")
        )
        if split == "train":
            data.refuse_incomplete(scenes)
        if empty := [scene.name for scene in scenes if not file_size(scene)]:
            raise InputError(f"{len(empty)} of {len(scenes)} have empty files, {empty[0]} first: fetch them again")
        videos = [scene.video for scene in scenes if not (scene.images or scene.is_text)]
        for path in dict.fromkeys((*videos[:1], *videos[-1:])):
            video = Video(path)
            video.read([0, video.num_frames - 1])


def _examine_memory(arguments: list[str], device: torch.device) -> Iterator[Finding]:
    """Compare what `plan` computes with the GPU."""
    from commands.plan import USABLE, gigabytes, parsed

    own = ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--split")
    training = parsed(tuple(own.parse_known_args(arguments)[1]))
    needed = f"memory: the training takes {gigabytes(training.needed)} GB on each GPU (see `plan`)"
    if device.type != "cuda":
        yield Finding("ok", needed)
        return
    total = torch.cuda.mem_get_info(device)[1]
    fits = training.needed <= USABLE * total
    text = f"{needed}, and {gigabytes(USABLE * total)} GB are usable"
    yield Finding(
        "ok" if fits else "problem",
        text if fits else f"{text}: python main.py plan with these options says how it fits",
    )
