"""What the machine has: its GPU and its free memory."""
