"""All that is wrong with the data of an experiment, in one list."""
