"""Encodings whose keys depend on the view that looks: RayRoPE and URoPE."""

from zoo.encodings.rayrope.anchors import URoPE
from zoo.encodings.rayrope.attention import rayrope_attention, rayrope_coefficients
from zoo.encodings.rayrope.rayrope import RayRoPE
from zoo.encodings.rayrope.urope import urope_attention, urope_positions
from zoo.encodings.rayrope.view_attention import RayAttention
