"""What benchmark tasks are made of: parts with texts to embed, judges of similarities, and checks of what files hold."""
