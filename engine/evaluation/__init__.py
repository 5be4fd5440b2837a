"""Evaluation: VOC mAP and COCO AP of detections, result files and pictures."""
