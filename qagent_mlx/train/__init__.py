"""Training: cases from the log, demonstrations, rewards, SFT and GRPO."""
