"""The endpoints that compute, a module for each family."""
