"""Answers: a prefix that is read once, its questions one by one, and the choice of each token."""
