"""Dataset formats: VOC, COCO, drawn shapes, and annotations out of memory."""
