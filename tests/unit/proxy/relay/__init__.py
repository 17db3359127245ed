"""What is admitted, forwarded, refused and told."""
