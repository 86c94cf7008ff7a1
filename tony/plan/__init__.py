"""What a training would take before it is paid for: counts, utilisation, energy, and what papers report of theirs."""
