"""Every method's settings, without the method: they are listed and checked without importing torch."""
