"""What was measured, and the pictures."""
