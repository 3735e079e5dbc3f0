"""Sequences of token ids about scenes, and all that follows from ids and grids alone; on the CPU, without a model."""
