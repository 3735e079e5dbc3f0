"""Parts of `score` and `report`: reading predictions and runs, comparisons, tables and the HTML page."""
