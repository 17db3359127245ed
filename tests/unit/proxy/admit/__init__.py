"""Keys, limits and the order of refusals."""
