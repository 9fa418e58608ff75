"""Datasets in [0, 1], and the module that perturbs their batches on the device."""
