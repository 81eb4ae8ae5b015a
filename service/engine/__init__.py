"""From queued rows to features and logits: runtime, scheduler, head bank."""
