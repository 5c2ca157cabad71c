from .base import Method as Method
from .catalogue import METHODS as METHODS
from .lookup import method as method
