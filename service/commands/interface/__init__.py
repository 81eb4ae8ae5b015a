"""What the commands take, a file a group; none imports what it does before it is run."""
