"""Where problems, words and rewards come from."""
