"""Published data sets and slow files, brought into the form that training and evaluation read."""
