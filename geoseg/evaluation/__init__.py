"""How good a model is: maps of labelled scenes against their labels, and what follows from the counts."""

SCORES_JSON, SCORES_CSV, RELIABILITY_CSV = "scores.json", "scores.csv", "reliability.csv"
CONFUSION_CSV, CONFUSION_PNG, REPORT = "confusion.csv", "confusion.png", "report.html"
FILES = (SCORES_JSON, SCORES_CSV, RELIABILITY_CSV, CONFUSION_CSV, CONFUSION_PNG, REPORT)  # what an evaluation writes
MAPS = "maps"  # folder of the maps that an evaluation keeps with ``--maps``
