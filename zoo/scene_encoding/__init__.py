"""The stages that turn scenes into visual tokens, as functions of values."""
