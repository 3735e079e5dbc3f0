"""SpatialVLM: the LightningModule that every model of the zoo is a choice of parts for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypedDict, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers.modeling_outputs import BaseModelOutputWithPooling

from zoo.attention import install_camera_attention
from zoo.backbone import Backbone, LoRA
from zoo.cameras import Cameras
from zoo.encodings import CameraEncoding
from zoo.errors import InputError
from zoo.generation import CameraQwen25VL, greedy
from zoo.optim import LearningRates, WarmupCosine
from zoo.positions import Seconds, TimeIndex, grid_step_index, mrope_position_ids
from zoo.tiny import TinyQwen25VL
from zoo.trainable import Trainable

PUBLISHED = LearningRates()  # Spatial-MLLM's


def adamw(parameters: Any) -> Optimizer:
    """AdamW with the published recipe's weight decay (biases have their own group without)."""
    return torch.optim.AdamW(parameters, weight_decay=0.1)


def refuse_failed(batch: dict[str, Any]) -> None:
    """InputError where a scene of the batch could not be read: a test goes on without it, training must not."""
    if batch["failed"]:
        record = batch["failed"][0]
        raise InputError(f"{record['scene']}: {record['error']}")


class Media(TypedDict, total=False):
    """What the sequences of a batch show, in the order in which it appears in them.

    pixel_values_videos (patches, 1176) and video_grid_thw (V, 3); pixel_values and image_grid_thw likewise
    for stills; frames: a (T, 3, H, W) tensor in 0..1 a video, for models with a geometry encoder;
    seconds_per_grid: one a video, None is 1.0; cameras: of each sequence, one a grid step.
    """

    pixel_values_videos: Tensor | None
    video_grid_thw: Tensor | None
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    frames: list[Tensor] | None
    seconds_per_grid: list[float] | Tensor | None
    cameras: Cameras | None


class SpatialVLM(Trainable):
    """A Qwen2.5-VL whose visual tokens may know their cameras.

    Args:
        backbone: where Qwen2.5-VL comes from; a tiny random one if not given.
        encoding: how the decoder's attention learns of the cameras; null is the stock attention, bit for bit.
        time: what the T of mRoPE's position ids means.
        learning_rates: one a part, null to freeze it.
        lora: low-rank adapters on the decoder, in place of training it whole.
        optimizer: takes the parameter groups.
        scheduler: takes the optimizer and the run's number of optimizer steps; stepped once a step.
        gradient_checkpointing: trades time for memory in the decoder and the vision tower.
        max_new_tokens: the longest answer.
        allow_untrained: answer questions even with random weights.
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        encoding: CameraEncoding | None = None,
        time: TimeIndex | None = None,
        learning_rates: LearningRates = PUBLISHED,
        lora: LoRA | None = None,
        optimizer: Callable[[Any], Optimizer] = adamw,
        scheduler: Callable[[Optimizer, int], LRScheduler] = WarmupCosine,
        gradient_checkpointing: bool = False,
        max_new_tokens: int = 32,
        allow_untrained: bool = False,
    ):
        super().__init__()
        backbone = backbone or TinyQwen25VL()
        self.encoding, self.time = encoding, time or Seconds()
        if encoding is not None and encoding.needs_constant_time and not self.time.constant:
            raise InputError(
                f"{type(encoding).__name__} acts on mRoPE's T section, where {type(self.time).__name__} would mix "
                "time with the camera: set --model.time NoTime"
            )
        self.qwen, self.processor = backbone.load()
        self.qwen.__class__ = CameraQwen25VL
        install_camera_attention(self.qwen.model.language_model)
        self.learning_rates = learning_rates
        self.freeze_parts()
        if lora is not None:
            if "decoder" in learning_rates.frozen():
                raise InputError("--model.lora trains the decoder, but --model.learning_rates.decoder freezes it")
            lora.apply(self.qwen.model.language_model)
            self.qwen.lm_head.requires_grad_(False)
        if gradient_checkpointing:
            self.qwen.activation_checkpointing_enable({"use_reentrant": False})
        self.optimizer, self.scheduler = optimizer, scheduler
        self.max_new_tokens = max_new_tokens
        self.can_answer = backbone.pretrained or allow_untrained
        self.train()

    @property
    def needs_cameras(self) -> bool:
        """Whether every scene must come with cameras."""
        return self.encoding is not None

    # ---- one forward pass ---------------------------------------------------------------------------------

    def encode_pixels(
        self, pixel_values: Float[Tensor, "patches channels"], grid_thw: Int[Tensor, "V 3"]
    ) -> list[Float[Tensor, "tokens D"]]:
        """The visual tokens of each video or still, in the decoder's width."""
        return list(self.qwen.model.get_video_features(pixel_values, grid_thw, return_dict=True).pooler_output)

    def prepare(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        *,
        videos: list[Tensor] | None = None,
        video_grid_thw: Int[Tensor, "V 3"] | None = None,
        images: list[Tensor] | None = None,
        image_grid_thw: Int[Tensor, "I 3"] | None = None,
        seconds_per_grid: list[float] | Float[Tensor, " V"] | None = None,
        cameras: Cameras | None = None,
    ) -> dict[str, Any]:
        """What the stock model is called with: fused tokens, position ids, and the encoded cameras.

        Args:
            videos: visual tokens of each video, in the order in which they appear in the batch.
            images: likewise for stills.
            seconds_per_grid: of each video, for a time index that uses it.
            cameras: of each sequence, one a grid step; `index` is worked out here unless it is given.
        """
        config = self.qwen.config
        layout: dict[str, Any] = {
            "image_grid_thw": image_grid_thw,
            "video_grid_thw": video_grid_thw,
            "spatial_merge_size": config.vision_config.spatial_merge_size,
            "image_token_id": config.image_token_id,
            "video_token_id": config.video_token_id,
            "vision_start_token_id": config.vision_start_token_id,
        }
        position_ids, _ = mrope_position_ids(
            input_ids,
            attention_mask,
            **layout,
            seconds_per_grid=seconds_per_grid,
            tokens_per_second=config.vision_config.tokens_per_second,
            time_index=self.time,
        )
        tokens = {"video": videos, "image": images}
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "mm_encoder_outputs": {
                kind: BaseModelOutputWithPooling(pooler_output=tuple(each)) for kind, each in tokens.items() if each
            },
        }
        if self.encoding is not None and cameras is not None:
            if cameras.index is None:
                cameras = cameras.with_index(grid_step_index(input_ids, attention_mask, **layout))
            text = config.text_config
            inputs["camera_encoding"] = self.encoding.encode(
                cameras,
                head_dim=text.hidden_size // text.num_attention_heads,
                mrope_section=text.rope_parameters["mrope_section"],
            )
        return inputs

    def _prepare_media(self, input_ids: Tensor, attention_mask: Tensor, media: Media) -> dict[str, Any]:
        pixels, grid = media.get("pixel_values_videos"), media.get("video_grid_thw")
        stills, still_grid = media.get("pixel_values"), media.get("image_grid_thw")
        return self.prepare(
            input_ids,
            attention_mask,
            videos=None if pixels is None or grid is None else self.encode_pixels(pixels, grid),
            video_grid_thw=grid,
            images=None if stills is None or still_grid is None else self.encode_pixels(stills, still_grid),
            image_grid_thw=still_grid,
            seconds_per_grid=media.get("seconds_per_grid"),
            cameras=media.get("cameras"),
        )

    def logits(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"], **media: Unpack[Media]
    ) -> Float[Tensor, "B L vocabulary"]:
        """Logits of whole sequences; see `Media` for what else they may come with."""
        return self.qwen(**self._prepare_media(input_ids, attention_mask, media), use_cache=False).logits

    def generate_ids(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        *,
        max_new_tokens: int,
        **media: Unpack[Media],
    ) -> list[list[int]]:
        """Greedy answers to left-padded sequences: new tokens only, up to EOS (included where it came)."""
        return greedy(self.qwen, self._prepare_media(input_ids, attention_mask, media), max_new_tokens)

    # ---- a batch of scenes --------------------------------------------------------------------------------

    def _sequences(self, batch: dict[str, Any], chunk: int | None = None) -> Iterator[dict[str, Any]]:
        """Each scene's vision once, then its sequences, `chunk` at a time (all at once if None)."""
        videos = self.encode_pixels(batch["pixel_values_videos"], batch["video_grid_thw"])
        count = len(batch["input_ids"])
        for start in range(0, count, chunk or count):
            rows = slice(start, start + (chunk or count))
            scene = batch["scene_index"][rows]
            cameras = batch["cameras"]
            if cameras is not None:
                cameras = cameras[scene]
            yield self.prepare(
                batch["input_ids"][rows],
                batch["attention_mask"][rows],
                videos=[videos[i] for i in scene.tolist()],
                video_grid_thw=batch["video_grid_thw"][scene],
                seconds_per_grid=batch["seconds_per_grid"][scene] if self.time.real_time else None,
                cameras=cameras,
            )

    def loss(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """Mean cross-entropy (nats) of the supervised tokens; only their logits are computed."""
        refuse_failed(batch)
        (inputs,) = self._sequences(batch)
        hidden = self.qwen.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        targets = batch["labels"][:, 1:]
        supervised = targets != -100
        logits = self.qwen.lm_head(hidden[supervised])
        return F.cross_entropy(logits.float(), targets[supervised])

    def answers(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """A prediction record a question, failed scenes' included (see `datamodules.collate`)."""
        texts: list[str] = []
        if len(batch["input_ids"]):
            for inputs in self._sequences(batch, batch["questions_per_batch"]):
                ids = greedy(self.qwen, inputs, self.max_new_tokens)
                texts += self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        answered = [{**record, "prediction": text} for record, text in zip(batch["records"], texts, strict=True)]
        return answered + batch["failed"]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["input_ids"]))
        for group in self.trainer.optimizers[0].param_groups:
            self.log(f"lr/{group['name']}", group["lr"], batch_size=1)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        return self.answers(batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        return self.answers(batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        refuse_failed(batch)
        return self.answers(batch)

    # ---- what is refused ----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise InputError(
                f"--trainer.precision {self.trainer.precision} would round the cameras' and RoPE's numbers: take "
                "bf16-mixed, or keep the weights in bfloat16 with --model.backbone.dtype bfloat16"
            )

    def _refuse_if_untrained(self) -> None:
        if not self.can_answer:
            raise InputError(
                "this model has random weights: train it (python main.py fit --config …), give --ckpt_path, "
                "or set --model.allow_untrained true to get random answers"
            )

    on_test_start = on_predict_start = _refuse_if_untrained

    def on_train_start(self) -> None:
        self.can_answer = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.can_answer = True
