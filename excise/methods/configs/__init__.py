"""Every method's settings, apart from the method, so that listing and checking them does not import torch."""
