"""Published models, one file each: a method's LightningModule, and how its released folders are read and written.

The core does not import these files. They are imported by name, or when a folder that the zoo did not write is opened.
To add a model, write a file like `spatial_mllm.py`. Its `__all__` has the public names, one literal list, which is read
here without importing the file.
"""

import re
from ast import literal_eval
from pathlib import Path

from zoo.lazy import lazy_exports

NAMES = re.compile(r"^__all__ = (\[[^]]*\])", re.MULTILINE)
FOUND = {path.stem: NAMES.search(path.read_text(encoding="utf-8")) for path in Path(__file__).parent.glob("*.py")}

__getattr__, __all__ = lazy_exports(
    __name__, {name: literal_eval(found[1]) for name, found in FOUND.items() if found is not None}
)
