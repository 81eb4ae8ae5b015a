"""The maths of heads, on plain numpy: statistics, prior, fits, guard."""
