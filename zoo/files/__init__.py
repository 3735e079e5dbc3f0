"""Files and folders: whole writes, strict JSON, fingerprints."""
