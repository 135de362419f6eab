"""One module a decoding library, each with a class that fulfils `revvideo.data.video_reader.VideoReader`.

pyav.py                  the default: exact and the fastest; packet_index.py and index_cache.py belong to it
torchcodec_reader.py     over torchcodec, decord and pytorchvideo: for comparison and for those who must have the
decord_reader.py         same frames as another project; what the three share is in library_reader.py
pytorchvideo_reader.py
frame_folder.py          a folder of pictures as a video
"""
