"""What all encoders share: base classes, layers, the front end."""
