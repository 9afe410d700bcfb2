"""The encoders: MiniLM without a hub, any RoBERTa, and RoBERTa with LoRA written into it."""
