"""Families of distributions: parameters, densities, samples and KL rules, one file each."""
