"""This machine: devices, processors, compiled kernels, the user's cache, work ahead in a thread."""
