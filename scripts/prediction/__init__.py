"""From image and video files to drawn images and files of detections."""
