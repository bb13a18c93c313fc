"""Training: pre-training as a denoiser, tuning on validation, DEQ fine-tuning."""
