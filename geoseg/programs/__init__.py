"""What the verbs of the command line call: one program per file."""
