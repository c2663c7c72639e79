"""Data: read files of any layout, prepare scenes and cut windows. Start reading at ``stage``.

``layout`` describes how a data set stores its files, ``pairing`` finds files that belong together,
``points`` reads sparse labels, ``split`` decides which scenes train. ``scene`` reads one scene,
``check`` finds defects of a folder (``form`` in headers, ``values`` in pixels), ``stage`` copies
all scenes to flat memory maps, ``scene_set`` holds their statistics and ``windows`` cuts batches.
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
