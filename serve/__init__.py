"""Real-time and batch endpoints, OpenAI-compatible, on the inference engine."""
