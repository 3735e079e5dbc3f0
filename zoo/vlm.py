"""SpatialVLM: the LightningModule that every model of the zoo is a choice of parts for."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import SCENE_FAULTS, InputError
from zoo.geometry.temporal_patches import median_depths, step_cameras
from zoo.model import SpatialModel
from zoo.prefix_cache import Prepare, Reply, answer_questions
from zoo.shared_prefix import IGNORED, pack_questions, supports_custom_mask, visual_tokens

TRIES = 2  # at answering the questions of a scene


def refuse_failed(batch: dict[str, Any]) -> None:
    """InputError where a scene of the batch could not be read: a test goes on without it, training must not."""
    if batch["failed"]:
        raise InputError(batch["failed"][0]["error"])


def refuse_long(batch: dict[str, Any], context: int) -> None:
    """InputError where a question with its video and answer is longer than the model's context (in tokens)."""
    lengths = batch["attention_mask"].sum(1)
    if int(lengths.max()) > context:
        name = batch["records"][int(lengths.argmax())]["id"]
        raise InputError(
            f"question {name} has {int(lengths.max())} tokens, more than the {context} of the model's context: lower "
            "--data.num_frames or --data.pixels.max_pixels"
        )


class SpatialVLM(SpatialModel):
    """A spatial video-language model that learns from scenes and their questions, and answers them.

    Args:
        max_new_tokens: the longest answer.
        allow_untrained: answer questions even with random weights.
        parts: what the model is made of, see `SpatialParts`.
    """

    def __init__(self, *, max_new_tokens: int = 32, allow_untrained: bool = False, **parts: Any):
        super().__init__(**parts)
        self.max_new_tokens = max_new_tokens
        self.can_answer = self.pretrained or allow_untrained

    # ---- a batch of scenes --------------------------------------------------------------------------------

    def encode_scenes(self, batch: dict[str, Any]) -> Prepare:
        """Each scene's vision, once; then what the stock model is called with for any sequences about them."""
        grids, given = batch["video_grid_thw"], batch["geometry"]
        lacking = self.requires_predicted_cameras(given)
        found = self.encode_geometry(batch.get("frames", ()), given, cameras=any(lacking))
        cameras = has_camera = points = None
        visual = self.encode_pixels(batch["pixel_values_videos"], grids)
        if self.uses_cameras:
            own = [each if lacks else had for each, had, lacks in zip(found, given, lacking, strict=True)]
            cameras, has_camera = step_cameras(own, self.merged_camera)
            cameras = self.set_reference_views(cameras, has_camera, visual, grids, list(range(len(grids))))
            points = self.token_points(own)
            if self.uses_median_depth:
                cameras = cameras.with_median_depth(median_depths(own))
        videos = [each.flatten(0, 1) for each in self.fuse(visual, grids, found, cameras, has_camera)]

        def prepare(ids: Int[Tensor, "B L"], mask: Int[Tensor, "B L"], scene: Int[Tensor, " B"]) -> dict[str, Any]:
            return self.prepare(
                ids,
                mask,
                videos=[videos[i] for i in scene.tolist()],
                video_grid_thw=grids[scene],
                seconds_per_grid=batch["seconds_per_grid"][scene] if self.time_index.real_time else None,
                cameras=None if cameras is None else cameras[scene],
                has_camera=None if has_camera is None else has_camera[scene],
                frame_indices=[batch["frame_indices"][i] for i in scene.tolist()],
                points=torch.cat([points[i] for i in scene.tolist()]) if points else None,
            )

        return prepare

    def loss(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """Mean cross-entropy (nats) of the supervised tokens; only their logits are computed.

        The questions of a scene share one sequence, where the attention's implementation takes the mask for it.
        """
        refuse_failed(batch)
        refuse_long(batch, self.qwen.config.text_config.max_position_embeddings)
        prepare = self.encode_scenes(batch)
        packed = pack_questions(batch, visual_tokens(self.qwen)) if supports_custom_mask(self.qwen) else None
        if packed is None:
            inputs = prepare(batch["input_ids"], batch["attention_mask"], batch["scene_index"])
            labels = batch["labels"]
        else:
            inputs = prepare(packed.input_ids, packed.attention_mask, packed.scene)
            inputs, labels = packed.with_question_masks(self.qwen, inputs), packed.labels
        hidden = self.qwen.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        supervised = targets != IGNORED
        logits = self.qwen.lm_head(hidden[supervised])
        return F.cross_entropy(logits.float(), targets[supervised])

    def predict_batch(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """A prediction record a question, failed scenes' included (see `datamodules.collate`).

        What the questions of a scene share is read once. A question that can't be answered says so in its `error`.
        """
        replies: list[Reply] = []
        if len(batch["input_ids"]):
            with torch.no_grad():
                replies = answer_questions(self.qwen, self.encode_scenes(batch), batch, self.max_new_tokens)
        texts = self.processor.tokenizer.batch_decode([reply.ids for reply in replies], skip_special_tokens=True)
        answered = [
            {**record, "prediction": text, "error": reply.error}
            for record, reply, text in zip(batch["records"], replies, texts, strict=True)
        ]
        return answered + batch["failed"]

    def predict_batch_with_retry(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """`answers`; where the model fails on what it is shown, it is tried once more, then each question says why."""
        said = ""
        for _ in range(TRIES):
            try:
                return self.predict_batch(batch)
            except torch.AcceleratorError:  # a GPU that failed answers nothing more: the run goes on after a restart
                raise
            except SCENE_FAULTS as error:
                said = str(error) or type(error).__name__
            torch.cuda.empty_cache()  # here the failed pass has let go of its tensors
        return [{**record, "prediction": "", "error": said} for record in batch["records"]] + batch["failed"]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["input_ids"]))
        for group in self.trainer.optimizers[0].param_groups:
            self.log(f"lr/{group['name']}", group["lr"], batch_size=1)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        return self.predict_batch_with_retry(batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        return self.predict_batch_with_retry(batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        refuse_failed(batch)
        return self.predict_batch(batch)

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
        self.can_answer = self.can_answer or checkpoint["global_step"] > 0
