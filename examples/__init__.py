"""Examples on real data; each is a short script that says what it prints."""
