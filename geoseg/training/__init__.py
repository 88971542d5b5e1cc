"""One training run: the step, what is averaged, kept and watched, and where it is distributed."""
