"""Sizes of Qwen-VL's vision tower that no configuration says."""

N_POSITIONS = 256
"""Rows of the ViT's learned position table, independent of the image size."""
RESAMPLER_HEAD_WIDTH = 128
