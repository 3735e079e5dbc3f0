"""Qwen2.5-VL (arXiv 2502.13923); released folders are read by `zoo.backbones.pretrained_qwen`."""
