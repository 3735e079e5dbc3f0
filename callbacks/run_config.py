"""config.yaml in the run's folder: every setting of the run."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback


class SaveRunConfig(SaveConfigCallback):
    """Writes the config when a run is trained; an evaluation keeps the config of the evaluated run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the config on rank zero."""
        path = Path(trainer.default_root_dir) / self.config_filename
        if trainer.is_global_zero and (stage == "fit" or not path.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(path), skip_none=False, overwrite=True, multifile=self.multifile)
