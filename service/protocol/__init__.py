"""The wire: Open Inference Protocol messages, tensors, bodies."""
