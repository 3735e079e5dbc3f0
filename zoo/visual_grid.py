"""The merge of patches into visual tokens, the same for every supported backbone."""

TEMPORAL_PATCH_SIZE = 2  # consecutive frames in one visual token; `Backbone` checks its checkpoint against both
SPATIAL_MERGE_SIZE = 2  # patches per side in one visual token
PATCHES_PER_TOKEN = TEMPORAL_PATCH_SIZE * SPATIAL_MERGE_SIZE**2
