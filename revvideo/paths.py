"""One PathManager for everything that revvideo opens: configs, lists, checkpoints, videos.

Local paths work as they are. A project that keeps its files elsewhere registers an iopath handler here once,
and every part of revvideo reads and writes through it.
"""

from iopath.common.file_io import PathManager

path_manager = PathManager()
