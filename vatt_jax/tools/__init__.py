"""Commands beside training: data preparation, costs, plans for TPUs."""
