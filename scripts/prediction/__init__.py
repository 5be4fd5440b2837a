"""From image and video files to drawn pictures and files of detections."""
