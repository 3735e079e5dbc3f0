"""What `score` and `report` are made of: a file of predictions, its scores, runs, tables, comparisons, the page."""
