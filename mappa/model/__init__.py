"""The frozen base, its roles' LoRA layers and its attention: the same code generates locally and trains."""
