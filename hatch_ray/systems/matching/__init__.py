"""Wide-baseline matching (arXiv 2606.03577): which marks of one photo stand where in another."""
