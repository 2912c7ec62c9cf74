"""What a backbone is worth: features, protocols, intervals, paired verdicts against floors, one report."""
