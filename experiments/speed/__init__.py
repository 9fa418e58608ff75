"""The engine's speed, as a fraction of that of the network's own passes, beside other libraries."""
