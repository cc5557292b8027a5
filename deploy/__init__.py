"""What is set up beside Fletcher: its monitoring."""
