"""Training regimes against conditions: the robustness matrix."""
