"""Data, models and tasks of the recipes: plain Lightning code that knows nothing of mixing."""
