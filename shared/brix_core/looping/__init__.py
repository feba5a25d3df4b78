"""What a loop is, in a conversation, among answers, and inside a stream."""
