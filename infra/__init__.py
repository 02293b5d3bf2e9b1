"""What holds a run up; it knows nothing of the method."""
