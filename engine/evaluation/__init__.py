"""Scores: detections to VOC mAP and COCO AP, their files and pictures."""
