"""Training: data, objective, and the runs that teach a model of any size."""
