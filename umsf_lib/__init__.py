"""UMSF-Net: unsupervised land-cover classification from paired optical and SAR images.

One file per idea, read in the order in which data meets them: config, runs, scenes, simulate,
windows, views, encoders, fusion, umsf_net, losses, momentum, metrics, training, pretrain,
cluster, baselines, mapping, report, figures, browser.
"""

__version__ = "0.1.0"
