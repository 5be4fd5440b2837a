"""Error analysis of a detector: numbers, charts, and an HTML report of them."""
