"""Models: images in, token maps out. Open ``stage`` first: it trains the despeckling front end.

``umsf_net`` combines ``encoders`` and ``fusion``. ``speckle`` simulates speckle, applies classical
filters and measures the speckle that remains.
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    encoders="Despeckle encoder",
    umsf_net="AttentionFusion central_attention",
    speckle="add_speckle boxcar draw_speckle enl patchwork ratio_statistics",
    stage="despeckle_band filter_band load_despeckler train_despeckler",
)
