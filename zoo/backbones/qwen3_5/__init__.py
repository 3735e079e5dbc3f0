"""Qwen3.5, dense: a hybrid decoder of Gated DeltaNet and full attention; folders by `zoo.backbones.pretrained_qwen`."""
