"""Data: files of any layout in, prepared scenes and windows out. Open ``stage`` first.

``layout`` says how a data set keeps its files, ``pairing`` which belong together, ``split`` which
train; ``scene`` reads one, ``check`` says what is wrong with a folder, ``stage`` streams all into
flat memory maps, ``scene_set`` knows their statistics, ``windows`` cuts batches out of them.
"""

from .. import hand_on

__getattr__, __all__ = hand_on(
    __name__,
    layout="load_layout",
    map_sheets="leakage sheet_of",
    pairing="pair_files",
    rasters="Grid grid_of opened pixel_size_m",
    scene="find_scenes",
    scene_set="class_shares labels_at valid_labels",
    stage="load_data prepare",
    windows="draw_windows open_store training_tiles",
)
