"""Responses: the slopes of a model's answers on what interventions change in its input."""
