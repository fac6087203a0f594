"""What a run needs around the method: settings, seeds and folds, the run directory, evaluation, plots."""
