"""What is pure on the way to Stripe and back."""
