"""What is learned: backbones, heads, data, training, evaluation."""
