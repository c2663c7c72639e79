"""Maps: a classifier in, named and coloured GeoTIFFs out. Open ``stage`` first.

``read`` shows what was written, ``browser`` lets runs and scenes be compared by hand.
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    browser="BrowserState browse",
    read="class_table",
    stage="legend_of predict_scene write_maps",
)
