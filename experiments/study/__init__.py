"""Parts of the study of retraining with SIGMA samples: python experiments/does_it_help.py."""
