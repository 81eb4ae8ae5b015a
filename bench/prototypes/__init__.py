"""Other ways to use more cores on one machine, as far as their measurement needs: see bench/layouts.py."""
