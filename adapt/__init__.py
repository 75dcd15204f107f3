"""Fine-tuning of pretrained models: full, top layers, LoRA, soft prompts, features."""
