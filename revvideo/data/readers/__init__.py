"""One module a decoding library, each with a class that fulfils `revvideo.data.video_reader.VideoReader`."""
