"""What a detector does well and badly: numbers, charts, and a page that shows them."""
