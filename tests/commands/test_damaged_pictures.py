"""A damaged picture costs lmms-eval's request its answer, and no other request: with stand-ins for lmms-eval."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo import InputError
from zoo.generation import Reply
from zoo.tasks.video_qa import FirstScenes


@dataclass
class Result:
    """lmms-eval's GenerationResult."""

    text: str
    token_counts: Any = None


class Messages:
    """lmms-eval's ChatMessages: messages as they are."""

    def __init__(self, messages: list[Any]) -> None:
        self.messages = messages

    def to_hf_messages(self) -> list[Any]:
        """The messages."""
        return self.messages


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The plugin's module, whose model answers each chat with its number of pictures."""
    instance = {"GenerationResult": Result, "Instance": object, "TokenCounts": dict}
    stand_ins: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": lambda *_, **__: None},
        "lmms_eval.api.instance": instance,
        "lmms_eval.api.model": {"lmms": type("lmms", (), {"rank": 0})},
        "lmms_eval.protocol": {"ChatMessages": Messages},
        "loguru": {"logger": SimpleNamespace(warning=print)},
    }
    for name, content in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("commands.lmms_eval", "commands.lmms_eval.model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("commands.lmms_eval.model")
    monkeypatch.setattr(module, "answer_chats", lambda _, media, chats, *__: [Reply([len(media)])] * len(chats))
    yield module
    for name in ("commands.lmms_eval", "commands.lmms_eval.model"):
        sys.modules.pop(name, None)


def ask(plugin: Any, *pictures: list[Path]) -> list[str]:
    model = plugin.SpatialVLMZoo.__new__(plugin.SpatialVLMZoo)
    decode = SimpleNamespace(decode=lambda ids: [str(each[0]) if each else "" for each in ids])
    model.model = SimpleNamespace(backbone=SimpleNamespace(preprocessor=decode))
    model.num_frames, model.first_scenes, model.task_dict = None, FirstScenes(), {"task": {"test": pictures}}

    def messages(files: list[Path]) -> list[Any]:
        return [{"role": "user", "content": [{"type": "image", "image": str(file)} for file in files]}]

    requests = [SimpleNamespace(args=("", messages, {}, n, "task", "test")) for n in range(len(pictures))]
    return [result.text for result in model.generate_until(requests)]


def test_a_damaged_picture_costs_its_own_request_alone(plugin: Any, tmp_path: Path, capsys: Any) -> None:
    sound, cut, broken, absent = (tmp_path / name for name in ("a.png", "cut.jpg", "broken.png", "absent.png"))
    pixels = np.random.default_rng(0).integers(0, 255, (56, 84, 3), np.uint8)
    for file in (sound, cut, broken):
        Image.fromarray(pixels).save(file)
    cut.write_bytes(cut.read_bytes()[:-500])
    content = bytearray(broken.read_bytes())
    content[40] ^= 255  # a checksum: Pillow raises a SyntaxError
    broken.write_bytes(content)
    assert ask(plugin, [sound], [cut], [sound, broken], [absent], [sound, sound]) == ["1", "", "", "", "2"]
    warned = capsys.readouterr().out
    assert all(f"no answer: task, document {n}: a picture can't be read" in warned for n in (1, 2, 3))
    with pytest.raises(InputError, match="task, document 0"):
        ask(plugin, [cut])
