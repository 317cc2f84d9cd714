"""pymixtral: Mixtral on CPUs."""
