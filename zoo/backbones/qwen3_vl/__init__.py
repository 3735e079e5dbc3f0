"""Qwen3-VL, dense (arXiv 2511.21631); released folders are read by `zoo.backbones.pretrained_qwen`."""
