"""From a step plan to sampled tokens on the device."""
