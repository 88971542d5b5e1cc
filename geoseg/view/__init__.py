"""Look at results and correct them: a server for this machine, and a page in the browser."""
