"""What the commands of `headway` do, beyond a line."""
