"""Files and folders: atomic writes, strict JSON, fingerprints."""
