"""Hugging Face's model folders: config.json and safetensors, in and out; see docs/models.md."""
