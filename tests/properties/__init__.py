"""What must hold for any input; each property stands beside an example worked out by hand."""
