"""Tests that really kill, cut or fill, then count the money."""
