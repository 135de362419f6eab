"""The list formats and layouts that `revvideo.data.manifest` reads, one module a family. Imports no torch.

pyslowfast      train.csv, val.csv, test.csv with 'path label' lines
mmaction2       *_train_list_videos.txt and *_train_list_rawframes.txt
kinetics        the official csv files (label, youtube_id, time_start, time_end, split) and a folder of videos
something       Something-Something v2: json files with templates, videos or frame folders
trees           a folder a class: videos, frame folders, pictures
"""
