"""What is shipped to the host and runs there, with nothing of ours at hand but itself."""
