"""Data: files of any layout in, prepared scenes and windows out. Open ``stage`` first.

``layout`` says how a data set keeps its files, ``pairing`` which belong together, ``split`` which
train; ``scene`` reads one, ``check`` says what is wrong with a folder, ``stage`` streams all into
flat memory maps, ``scene_set`` knows their statistics, ``windows`` cuts batches out of them.
"""
