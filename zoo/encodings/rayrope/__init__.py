"""Encodings whose keys depend on the view that looks: RayRoPE and URoPE."""

from zoo.encodings.rayrope.attention import rayrope_attention, rayrope_coefficients
from zoo.encodings.rayrope.rayrope import RayAttention, RayRoPE
from zoo.encodings.rayrope.urope import URoPE, urope_attention, urope_positions
