"""Sequences of token ids about scenes, and everything that depends only on ids and grids, without a model."""
