"""What draws the pictures and the page of the docs."""
