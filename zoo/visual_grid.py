"""The merge of patches into visual tokens, the same for every supported backbone."""

TEMPORAL_PATCH_SIZE = 2  # consecutive frames in one visual token; `Backbone` checks its checkpoint against both
SPATIAL_MERGE_SIZE = 2  # patches per side in one visual token
PATCHES_PER_TOKEN = TEMPORAL_PATCH_SIZE * SPATIAL_MERGE_SIZE**2
IMAGE_PIXELS = (4 * 28**2, 16384 * 28**2)  # least and most of a still image: 4 to 16,384 tokens of Qwen2.5-VL
