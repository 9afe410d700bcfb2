"""Language models: load one without a hub, show it conversations, score and use what it writes."""
