from .concepts import Concept as Concept
from .concepts import Pair as Pair
from .erasers import Attachment as Attachment
from .erasers import Attachments as Attachments
from .erasers import Eraser as Eraser
from .erasers import Signer as Signer
from .erasers.loaders import disable_erasers as disable_erasers
from .erasers.loaders import enable_erasers as enable_erasers
from .erasers.loaders import encode as encode
from .erasers.loaders import get_active_erasers as get_active_erasers
from .erasers.loaders import list_erasers as list_erasers
from .erasers.loaders import load_eraser as load_eraser
from .erasers.loaders import set_erasers as set_erasers
from .erasers.loaders import unload_eraser as unload_eraser
from .erasers.telemetry import on_event as on_event
from .errors import EraserDidNotFire as EraserDidNotFire
from .errors import ExciseError as ExciseError
from .methods.sae.finding import SNCEConfig as SNCEConfig
from .sae import TopKSAE as TopKSAE
from .sites import LanguageModel as LanguageModel
from .sites import Site as Site
from .sites import TextEncoding as TextEncoding

__version__: str
