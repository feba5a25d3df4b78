"""What of a conversation is left out when it does not fit."""
