"""Prompting without training: zero-shot, few-shot and retrieval-augmented prompts."""
