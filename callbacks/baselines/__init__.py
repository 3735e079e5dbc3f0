"""Blind baselines: what a test's questions score without their videos, beside every score.

One file each: the best `constant`, the `text` alone, the `cameras` alone; `blind.py` puts them together.
"""
