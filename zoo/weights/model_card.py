"""The model card of a saved or exported model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

LIBRARY = "spatial-vlm-zoo"
FILE = "README.md"
CARD = """---
library_name: {library}
pipeline_tag: video-text-to-text
tags: [spatial-reasoning, video, 3d]
{base_model}---

# {title}

A spatial video-language model of the {library}, made of these parts:

```yaml
{parts}```

```python
from zoo import SpatialVLM

model = SpatialVLM.from_pretrained("{title}")
model.answer("clip.mp4", "What is the size of this room (in square meters)?")
```
{frozen}"""


def model_card(title: str, parts: Mapping[str, Any], released: Iterable[str], frozen: Iterable[str] = ()) -> str:
    """Return the text of a model card.

    Args:
        title: Name of the model.
        parts: Its configuration.
        released: Where its released weights come from; the first hub id is the base model.
        frozen: Where those weights are read from that the folder has not.
    """
    hub_ids = [path for path in released if not Path(path).exists()]
    return CARD.format(
        library=LIBRARY,
        title=title,
        base_model="".join(f"base_model: {path}\n" for path in hub_ids[:1]),
        parts=yaml.safe_dump(parts, sort_keys=False),
        frozen="".join(f"\nFrozen weights are read from `{path}`.\n" for path in frozen),
    )
