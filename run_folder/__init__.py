"""What a run is on disk: the configs that make it, the record it keeps, its folder, and the folders of its tests."""
