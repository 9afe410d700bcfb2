"""Four bits: NF4 written by hand, and LoRA on bitsandbytes' 4-bit layers."""
